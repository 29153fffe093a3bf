# The transfer matrix: `make transfer SCALE=smoke|cpu|gpu`. README.md in this folder says what it measures and finds.
# GRID names grids of the YAML file, where not all are wanted; TRANSFER_ARGS are further arguments, such as --preview.
include experiments/study.mk
$(call known-scale,transfer,$(patsubst experiments/transfer/%.yaml,%,$(wildcard experiments/transfer/*.yaml)),$(SCALE))

# CIFAR-100 has no public classifier in the data folder: one is trained once the images are there, where its grid is measured.
CIFAR100 := $(if $(filter --preview,$(TRANSFER_ARGS)),,$(if $(filter cifar100,$(or $(GRID),cifar100)),\
  $(wildcard $(or $(MAEP_DATA_DIR),data)/cifar-100-python)))
CIFAR100_RUN := runs/transfer/cifar100-$(SCALE)
$(eval $(call maep-classifier,configs/cifar100,$(CIFAR100_RUN),$($(SCALE).overlays),$($(SCALE).classifier) \
  --model.init_args.classifier resnet20))

# What each scale trains first: smoke the classifier of the demo, so that it has one where there are no files.
smoke.transfer := runs/demo/classifier/classifier.safetensors
cpu.transfer := $(if $(CIFAR100),$(CIFAR100_RUN)/classifier/classifier.safetensors)
gpu.transfer := $(cpu.transfer)

.PHONY: transfer
transfer: $($(SCALE).transfer) | $(INSTALLED)
	$(BIN)/python -m experiments.transfer.run experiments/transfer/$(SCALE).yaml --runs runs/transfer/$(SCALE) \
	  $(foreach grid,$(GRID),--grid $(grid)) $(TRANSFER_ARGS)
