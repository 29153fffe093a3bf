# The ablations: `make ablation-TABLE` for a file of experiments/ablations/tables, `make ablations` for all of them;
# SCALE=digits (default) or cpu (CIFAR-10). CLASSIFIER and CLASSIFIER_NAME name a frozen classifier instead of the one that
# is trained. What is finished is not run again. README.md in this folder says what was found.
include experiments/study.mk

ABLATIONS := $(patsubst experiments/ablations/tables/%.yaml,%,$(wildcard experiments/ablations/tables/*.yaml))
ABLATION_SCALE := $(if $(filter file,$(origin SCALE)),digits,$(SCALE))

$(call known-scale,ablations ablation-%,$(filter-out cell,$(patsubst experiments/ablations/scale/%.yaml,%,\
  $(wildcard experiments/ablations/scale/*.yaml))),$(ABLATION_SCALE))

ablate = $(BIN)/python experiments/ablations/ablate.py $(1) --scale $(ABLATION_SCALE) \
  $(if $(CLASSIFIER),--classifier $(CLASSIFIER)) $(if $(CLASSIFIER_NAME),--classifier-name $(CLASSIFIER_NAME)) $(ABLATE_ARGS)

.PHONY: ablations $(ABLATIONS:%=ablation-%)
ablations: | $(INSTALLED)
	$(call ablate,)

$(ABLATIONS:%=ablation-%): ablation-%: | $(INSTALLED)
	$(call ablate,$*)
