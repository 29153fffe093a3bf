# The interface of the project, and its study engine: each stage of a study is a target whose file is its result, so
# what is done is not done again, and a killed study goes on where it stopped.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
PYTEST_ARGS ?=
SCALE ?= smoke

BIN := $(VENV)/bin
LIGHTNING := $(BIN)/lightning
INSTALLED := $(VENV)/.installed

define HELP
make demo                       train, attack and report on a real data set that needs no download (CPU, minutes)
make reproduce-cifar10          the same on CIFAR-10, with SCALE
make whitebox-cifar10           a purifier trained against white-box attack, and the threat ladder beside the plain one
make denoise-cifar10            a purifier that stands behind noise, for classifiers, data sets and sizes it has not met
make denoise-mild-cifar10       one for less noise, and larger (but at SCALE=gpu, where both are of one size)
make collage-cifar10            a purifier for 224 pixels without noise: denoise-mild's, trained on before SqueezeNet or CLASSIFIER
make transfer                   one purifier before other classifiers, data sets, sizes and attacks, as a heat map
make ablations                  the tables of experiments/ablations on digits, or one: make ablation-loss
make dashboard                  TensorBoard over runs/
make install                    .venv with the package and its tools; the other targets do it themselves
make test                       the tests; PYTEST_ARGS="-k name" narrows them
make lint                       ruff: rules and format
make type-check                 mypy --strict over src/
make format                     let ruff mend what it can
make clean                      remove caches and builds; .venv/, data/ and runs/ stay

variables
SCALE=                          smoke (default), cpu or gpu, of make transfer and the targets that end in cifar10; of make ablations
                                digits (default), cpu or demo
CLASSIFIER=                     of the same targets, but transfer: the frozen classifier to defend, a file or a text of
                                docs/own-classifier.md; CLASSIFIER_NAME= its network, where it does not say it
SURROGATE=                      of make whitebox-cifar10: the classifier that its transfer attacks are made on; SURROGATE_NAME= its network
GUIDES=                         of make collage-cifar10 with CLASSIFIER: layers of it that collages should look the same to, such as [network.layer4]
GRID=                           of make transfer: only these grids of experiments/transfer/SCALE.yaml, as in GRID="attacks l2"
TRANSFER_ARGS=                  of make transfer: more arguments, such as --preview for what it would cost
ABLATE_ARGS=                    of make ablations and ablation-TABLE: more arguments, such as --seeds 1
PYTHON=$(PYTHON)                  the interpreter that makes .venv: 3.11 or newer
VENV=$(VENV)                      where it goes
PIP_ARGS=                       more arguments of pip, such as an index with torch for your hardware
MAEP_DATA_DIR=                  (environment) the folder that holds cifar-10-batches-py; data/ where it is not set
endef

.PHONY: help install test lint type-check format dashboard clean
help:
	$(info $(HELP))
	@:

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed; '$(PYTHON)' is not. Name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@echo "[install] making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it needs the package python3-venv." >&2; exit 1; }
	@echo "[install] installing maep-lightning and its dependencies (torch is large: some minutes)"
	@# One call, so that torch and torchvision come from the same index: mixed builds fail at import.
	@$(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_ARGS) -e '.[dev]'
	@$(BIN)/maep --version
	@touch $@
	@echo "[install] done"

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type-check: $(INSTALLED)
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dashboard: $(INSTALLED)
	$(BIN)/tensorboard --logdir runs

clean:
	rm -rf build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	find src tests experiments -name __pycache__ -type d -prune -exec rm -rf {} +

# The studies: `demo`, `reproduce-cifar10`, `transfer` and `ablations`.
-include experiments/digits/pipeline.mk
-include experiments/cifar10/pipeline.mk
-include experiments/transfer/pipeline.mk
-include experiments/ablations/pipeline.mk
