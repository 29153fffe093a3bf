# CIFAR-10: `make reproduce-cifar10 SCALE=smoke|cpu|gpu`. MAEP with the winning options, and the paper's plain ViT beside
# it (`plain`), on one frozen classifier. README.md in this folder says what each scale costs and found.
# `make denoise-cifar10` trains the purifier that stands behind noise, for other classifiers, data sets and sizes, and
# `make denoise-mild-cifar10` one behind less noise, for smaller radii, and larger (but at gpu); `make collage-cifar10` teaches the latter,
# as it is shipped, what a classifier of 224 pixels looks at (torchvision's SqueezeNet, or CLASSIFIER with GUIDES, some layers).
# `make whitebox-cifar10` trains the white-box aware purifier (`aware`), and climbs the whole threat ladder with it and with
# `maep`; SURROGATE and SURROGATE_NAME name the classifier of the transfer rung.
include experiments/study.mk
$(call known-scale,%-cifar10,smoke cpu gpu,$(SCALE))

CIFAR10 := runs/cifar10-$(SCALE)

# The paper's plain ViT and its loss: no residual, no refinement, l1 alone, half of the patches removed.
PLAIN := --model.init_args.shape mae_vit_tiny_patch4_32 --model.init_args.overrides '{residual: false}'
PAPER := --model.init_args.mask_ratio 0.5 --model.init_args.consistency 0 --model.init_args.consistency_start 0 \
  --model.init_args.clean_fraction 0 --model.init_args.attack.kind pgd

# For noise of up to 20/255 where the configuration's is up to 38/255, with 14 convolutions instead of 8.
MILD := --model.init_args.noise 0.08 --model.init_args.overrides \
  '{width: 48, depth: 1, heads: 2, decoder_width: 48, decoder_heads: 2, refine_depth: 14, refine_width: 64}'

smoke.network := resnet20
smoke.overlays := --config configs/scale/smoke.yaml
smoke.classifier := --trainer.max_epochs 8
smoke.pretrain := --trainer.max_epochs 1
smoke.finetune := --trainer.max_epochs 1
smoke.lora := --trainer.max_epochs 1
smoke.plain.pretrain := $(PLAIN) --trainer.max_epochs 1
smoke.plain.finetune := $(PAPER) --trainer.max_epochs 1
smoke.plain.lora := $(PAPER) --model.init_args.mask_ratio 0 --trainer.max_epochs 1
smoke.aware := --trainer.max_epochs 1 --model.init_args.attack.growth 0
smoke.denoise := --trainer.max_epochs 1
smoke.denoise-mild := $(MILD) --trainer.max_epochs 1
smoke.collage := --trainer.max_epochs 1
smoke.ladder_images := 20
smoke.images := 100
smoke.whitebox_images := 20

cpu.network := resnet20
cpu.overlays := --config configs/scale/cpu.yaml
cpu.classifier := --trainer.max_epochs 20
cpu.pretrain := --trainer.max_epochs 2
cpu.finetune := --trainer.max_epochs 9 --trainer.check_val_every_n_epoch 3 --data.init_args.train_limit 25000 \
  --data.init_args.val_size 1000 --model.init_args.attack.refresh 9
cpu.lora := --trainer.max_epochs 1 --data.init_args.train_limit 10000 --data.init_args.val_size 1000
cpu.plain.pretrain := $(PLAIN) --trainer.max_epochs 1 --data.init_args.train_limit 20000
cpu.plain.finetune := $(PAPER) --trainer.max_epochs 1 --data.init_args.train_limit 20000 --data.init_args.val_size 1000
cpu.plain.lora := $(PAPER) --model.init_args.mask_ratio 0 --trainer.max_epochs 1 --data.init_args.train_limit 5000 --data.init_args.val_size 1000
cpu.aware := --config configs/scale/ema.yaml --trainer.max_epochs 7 --model.init_args.attack.eps 5/255 --model.init_args.attack.step_size 6/255
cpu.denoise := --trainer.max_epochs 9 --trainer.check_val_every_n_epoch 3 --data.init_args.val_size 1000
cpu.denoise-mild := $(MILD) --trainer.max_epochs 11 --trainer.check_val_every_n_epoch 3 --data.init_args.val_size 1000
cpu.collage := --trainer.check_val_every_n_epoch 5 --data.init_args.val_size 1000
cpu.ladder_images := 300
cpu.images := 1000
cpu.whitebox_images := 1000
cpu.plain.whitebox_images := 200

# At batch 256 `base_lr` is the learning rate itself. Those below are the rates that the stages have at the cpu scale, with
# their smaller batches; the linear rule alone would make them 2 to 8 times as high. No run on a GPU has tested them.
RATE := --model.init_args.optimization.base_lr
gpu.network := wrn-28-10
gpu.overlays := --config configs/scale/gpu.yaml
gpu.classifier := --model.init_args.classifier $(gpu.network) $(RATE) 1e-3 --trainer.max_epochs 200
gpu.pretrain := --model.init_args.shape mae_vit_small_patch2_32 \
  --model.init_args.overrides '{residual: false, refine_depth: 12, refine_width: 128}' $(RATE) 1e-3 --trainer.max_epochs 200
gpu.finetune := $(RATE) 1e-3 --trainer.max_epochs 100 --model.init_args.attack.refresh 5
gpu.lora := $(RATE) 5e-4 --trainer.max_epochs 10
gpu.plain.pretrain := --model.init_args.shape mae_vit_small_patch2_32 --model.init_args.overrides '{residual: false}' \
  $(RATE) 1e-3 --trainer.max_epochs 200
gpu.plain.finetune := $(PAPER) $(gpu.finetune)
gpu.plain.lora := $(PAPER) --model.init_args.mask_ratio 0 $(gpu.lora)
gpu.aware := --config configs/scale/ema.yaml --model.init_args.overrides '{width: 384, depth: 6, heads: 6, refine_width: 128, refine_depth: 8}' \
  --model.init_args.attack '{steps: 7, step_size: 2/255}' $(RATE) 2e-3 --trainer.max_epochs 100
gpu.denoise := --model.init_args.overrides '{refine_depth: 12, refine_width: 128}' $(RATE) 1e-3 --trainer.max_epochs 100
gpu.denoise-mild := $(gpu.denoise) --model.init_args.noise 0.08
gpu.collage := --data.init_args.batch_size 1024 $(RATE) 6.25e-5 --trainer.max_epochs 60
gpu.ladder_images := 1000
gpu.images := 10000
gpu.whitebox_images := 10000

VICTIM := $(or $(CLASSIFIER),$(CIFAR10)/classifier/classifier.safetensors)
$(eval $(call maep-classifier,configs/cifar10,$(CIFAR10),$($(SCALE).overlays),$($(SCALE).classifier)))
$(eval $(call maep-purifier,configs/cifar10,$(CIFAR10)/maep,$($(SCALE).overlays),$(SCALE).))
$(eval $(call maep-purifier,configs/cifar10,$(CIFAR10)/plain,$($(SCALE).overlays),$(SCALE).plain.))

named = --trainer.callbacks.init_args.purifier_name $(1) \
  --trainer.callbacks.init_args.classifier_name $(or $(CLASSIFIER_NAME),$($(SCALE).network))

# Attacks run in float32 whatever the overlay says; the blind one is cheap, so it covers more images.
$(CIFAR10)/%/blind/results.json: $(CIFAR10)/%/lora/purifier.safetensors
	$(call maep-attack,configs/cifar10/blind.yaml,$(CIFAR10)/$*,blind,$<,\
	  --data.init_args.test_limit $($(SCALE).images) $(call named,$*))

$(CIFAR10)/%/attack/results.json: $(CIFAR10)/%/lora/purifier.safetensors
	$(call maep-attack,configs/cifar10/attack.yaml,$(CIFAR10)/$*,attack,$<,\
	  --data.init_args.test_limit $(or $($(SCALE).$*.whitebox_images),$($(SCALE).whitebox_images)) $(call named,$*))

CIFAR10_RESULTS := $(foreach purifier,maep plain,$(foreach attack,blind attack,$(CIFAR10)/$(purifier)/$(attack)/results.json))
$(CIFAR10)/results.json: $(CIFAR10_RESULTS)
	$(BIN)/python experiments/collect.py $(CIFAR10) --reference experiments/cifar10/expected.json

.PHONY: reproduce-cifar10
reproduce-cifar10: $(CIFAR10)/results.json
	@echo "[cifar10] the report: $(CIFAR10)/report.md, the pictures: $(CIFAR10)/*/attack/report.png"

$(CIFAR10)/aware/whitebox/purifier.safetensors: $(call classifier-file,$(VICTIM)) | $(INSTALLED)
	$(call maep-run,fit,configs/cifar10/whitebox.yaml,$(CIFAR10)/aware,whitebox,$($(SCALE).overlays) \
	  $(victim-options) $($(SCALE).aware) --ckpt_path last)

DENOISE := denoise denoise-mild
denoise.noise := 18
denoise-mild.noise := 10
$(DENOISE:%=$(CIFAR10)/%/purifier.safetensors): $(CIFAR10)/%/purifier.safetensors: $(call classifier-file,$(VICTIM)) | $(INSTALLED)
	$(call maep-run,fit,configs/cifar10/denoise.yaml,$(CIFAR10),$*,$($(SCALE).overlays) $(victim-options) \
	  $($(SCALE).$*) --trainer.logger.init_args.name $* --ckpt_path last)

.PHONY: $(DENOISE:%=%-cifar10)
$(DENOISE:%=%-cifar10): %-cifar10: $(CIFAR10)/%/purifier.safetensors
	@echo "[cifar10] to stand behind noise: noise:$($*.noise)/255,seed=0+$<"

$(CIFAR10)/collage/purifier.safetensors: | $(INSTALLED)
	$(call maep-run,fit,configs/cifar10/collage.yaml,$(CIFAR10),collage,$($(SCALE).overlays) $($(SCALE).collage) \
	  $(if $(CLASSIFIER),$(victim-options)) $(if $(GUIDES),--model.init_args.guides '$(GUIDES)') --ckpt_path last)

.PHONY: collage-cifar10
collage-cifar10: $(CIFAR10)/collage/purifier.safetensors

SURROGATE_FILE := $(or $(SURROGATE),$(CIFAR10)/surrogate/classifier/classifier.safetensors)
climb = $(call maep-attack,configs/cifar10/ladder.yaml,$(CIFAR10)/$(1),ladder,$<,\
  --data.init_args.test_limit $($(SCALE).ladder_images) $(call named,$(1)) \
  --trainer.callbacks.init_args.surrogate $(SURROGATE_FILE) \
  $(if $(SURROGATE_NAME),--trainer.callbacks.init_args.surrogate_name $(SURROGATE_NAME)))

$(eval $(call maep-classifier,configs/cifar10,$(CIFAR10)/surrogate,$($(SCALE).overlays) --seed_everything 1,$($(SCALE).classifier)))
$(CIFAR10)/maep/ladder/results.json: $(CIFAR10)/maep/lora/purifier.safetensors $(call classifier-file,$(SURROGATE_FILE))
	$(call climb,maep)
$(CIFAR10)/aware/ladder/results.json: $(CIFAR10)/aware/whitebox/purifier.safetensors $(call classifier-file,$(SURROGATE_FILE))
	$(call climb,aware)

.PHONY: whitebox-cifar10
whitebox-cifar10: $(CIFAR10)/maep/ladder/results.json $(CIFAR10)/aware/ladder/results.json
	@echo "[cifar10] the reports: $(^:results.json=report.html)"
