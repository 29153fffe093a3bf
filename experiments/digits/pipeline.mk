# The demo: every stage of MAEP on scikit-learn's digits, some minutes on two cores, no download.
# Options of a stage: demo.classifier, demo.pretrain, demo.finetune, demo.lora, demo.attack.
include experiments/study.mk
$(if $(and $(filter demo,$(MAKECMDGOALS)),$(filter command line,$(origin SCALE))),$(error make demo has one scale: leave SCALE=$(SCALE) out))

VICTIM := runs/demo/classifier/classifier.safetensors
$(eval $(call maep-classifier,configs/digits,runs/demo,,$(demo.classifier)))
$(eval $(call maep-purifier,configs/digits,runs/demo,,demo.))

runs/demo/results.json: runs/demo/lora/purifier.safetensors
	$(call maep-run,test,configs/digits/attack.yaml,runs/demo,attack, \
	  --trainer.callbacks.init_args.run_dir runs/demo $(demo.attack))

.PHONY: demo
demo: runs/demo/results.json
	@echo "[demo] the report: runs/demo/report.md, runs/demo/report.png, runs/demo/results.json"
	@echo "[demo] the curves: make dashboard"
