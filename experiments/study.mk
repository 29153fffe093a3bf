# The stages of MAEP as files: each target is the weights or the results that its stage leaves, so a finished stage is
# not run again, and a killed one goes on from its last checkpoint (--ckpt_path last).
#
# $(call maep-classifier,CONFIGS,RUN,OVERLAYS,OPTIONS) gives the rule of stage 0, and
# $(call maep-purifier,CONFIGS,RUN,OVERLAYS,VARIABLES) those of stages 1 to 3 of one purifier:
#   CONFIGS    the folder of the configurations
#   RUN        the folder of the results
#   OVERLAYS   further --config options
#   VARIABLES  prefix of the variables with options of each stage, such as cpu. for cpu.finetune
# VICTIM, the frozen classifier, is to be set before. CLASSIFIER and CLASSIFIER_NAME name one to defend instead of the one
# that the study trains: a file, the name of one in the data folder, or a text such as timm:resnet50 (docs/own-classifier.md).

# $(call known-scale,TARGETS,SCALES,SCALE) stops where one of TARGETS (may hold %) is asked for at a scale that it has not: an
# unknown one would leave all options out, and run for as long as the configurations say.
known-scale = $(if $(filter $(1),$(MAKECMDGOALS)),$(if $(filter $(3),$(2)),,$(error SCALE=$(3) is none of \
  $(strip $(2)), the scales of $(filter $(1),$(MAKECMDGOALS)))))

# $(call classifier-file,TEXT): what make has to look after, which is nothing for a text such as timm:NAME or a name of the data folder.
classifier-file = $(if $(findstring :,$(1)),,$(if $(findstring /,$(1)),$(1),$(or $(wildcard $(1)),$(call in-data-folder,$(1)))))
in-data-folder = $(or $(firstword $(wildcard $(or $(MAEP_DATA_DIR),data)/weights/$(1) $(or $(MAEP_DATA_DIR),data)/weights/$(1).*)),\
  $(error There is no classifier '$(1)': neither here nor in the folder weights of MAEP_DATA_DIR))

# On a CPU timm's plain attention trains a purifier 1.3 times faster than torch's fused one (231 against 175 images/s, forward
# and backward of maep_deep_patch4_32 in bfloat16, batch 64, one thread); on a GPU the fused one is faster. What trains is told
# so, and nothing else: `make transfer` purifies pictures of 224 pixels, whose patches' attention the plain one would keep whole.
runs/% ablations ablation-%: export TIMM_FUSED_ATTN := $(if $(filter gpu,$(SCALE)),1,0)

# $(call maep-run,VERB,CONFIG,FOLDER,STAGE,OPTIONS): runs a stage and notes how long it took.
define maep-run
@echo "[$(4)] $(1) --config $(2); logs and checkpoints in $(3)/$(4)"
@mkdir -p $(3)/$(4)
@start=$$(date +%s); $(LIGHTNING) $(1) --config $(2) $(5) --trainer.default_root_dir $(3)/$(4) \
  --trainer.logger.init_args.save_dir $(3) && echo $$(($$(date +%s) - start)) >> $(3)/$(4)/seconds
@echo "[$(4)] done: $@"
endef

victim-options = --model.init_args.classifier $(VICTIM)$(if $(CLASSIFIER_NAME), \
  --model.init_args.classifier_name $(CLASSIFIER_NAME))

# The same for a rule that is written by `eval`: a comma in the text must not part the arguments of `call`.
comma := ,
fixed-victim = $(subst $(comma),$$(comma),$(victim-options))

define maep-classifier
$(2)/classifier/classifier.safetensors: | $(INSTALLED)
	$$(call maep-run,fit,$(1)/classifier.yaml,$(2),classifier,$(3) $(4) --ckpt_path last)
endef

define maep-purifier
$(2)/pretrain/purifier.safetensors: | $(INSTALLED)
	$$(call maep-run,fit,$(1)/pretrain.yaml,$(2),pretrain,$(3) $$($(4)pretrain) --ckpt_path last)

$(2)/finetune/purifier.safetensors: $$(call classifier-file,$(VICTIM)) $(2)/pretrain/purifier.safetensors | $(INSTALLED)
	$$(call maep-run,fit,$(1)/finetune.yaml,$(2),finetune,$(3) $(fixed-victim) \
	  --model.init_args.weights $(2)/pretrain/purifier.safetensors $$($(4)finetune) --ckpt_path last)

$(2)/lora/purifier.safetensors: $(2)/finetune/purifier.safetensors $$(call classifier-file,$(VICTIM)) | $(INSTALLED)
	$$(call maep-run,fit,$(1)/lora.yaml,$(2),lora,$(3) $(fixed-victim) \
	  --model.init_args.weights $$< $$($(4)lora) --ckpt_path last)
endef

# $(call maep-attack,CONFIG,RUN,STAGE,PURIFIER,OPTIONS): the recipe that judges PURIFIER; results lie in RUN/STAGE.
maep-attack = $(call maep-run,test,$(1),$(2),$(3),$(victim-options) --model.init_args.purifier $(4) \
  --trainer.callbacks.init_args.run_dir $(2)/$(3) $(5))
