# All workflows of NeuScale; `make` without a target lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.ready
OPS   := $(VENV)/.ops

# The first of these that exists and is Python 3.11 to 3.13; override it with PYTHON=…
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && { echo $$p; break; }; done)

EXPERIMENT ?= quickstart
GPUS ?=
ARGS ?=
PORT ?= 6006
CUDA ?=
# Tests run in one process per core, at most four; tests of a file stay together to share an expensive run.
PYTEST_JOBS ?= -n auto --maxprocesses 4 --dist loadfile
# Containers: where `make train` runs, the names of the images, and the source of the .sif.
IN    ?= venv
IMAGE ?= neuscale:$(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
SIF   ?= neuscale.sif
FROM  ?= definition
.PHONY: help
help: ## Show this list
	@echo 'make TARGET [NAME=VALUE …]'
	@[ -t 1 ] && bold='\033[1m' plain='\033[0m' || bold= plain=; \
	awk -F ':.*## ' "/^[a-z-]+:.*## / {printf \"  $$bold%-16s$$plain %s\\n\", \$$1, \$$2}" $(MAKEFILE_LIST)
	@echo 'Targets that run here first make .venv from the locked requirements, once.'

.PHONY: setup
setup: $(STAMP) ## Make .venv from the locked requirements

$(STAMP): requirements-dev.lock requirements.lock requirements-build.lock pyproject.toml
	@PYTHON='$(PYTHON)' bash scripts/setup.sh $(VENV)
	@touch $@

.PHONY: quickstart
quickstart: $(STAMP) ## Train and evaluate a small Swin on Fashion-MNIST, in minutes, on any machine
	@$(BIN)/neuscale data prepare fashion_mnist
	@$(BIN)/neuscale train experiment=quickstart $(ARGS)
	@$(BIN)/neuscale eval last
	@echo 'Curves, images and the confusion matrix: make tensorboard'

.PHONY: train
train: $(if $(filter venv,$(IN)),$(STAMP)) ## Train EXPERIMENT=quickstart on GPUS=N (0: the CPU), with ARGS='field=value …', IN=venv|docker|apptainer
	@$(RUN_$(IN)) train experiment=$(EXPERIMENT) $(if $(GPUS),--gpus $(GPUS)) $(ARGS)

RUN_venv      = $(BIN)/neuscale
RUN_docker    = bash scripts/train_in.sh docker $(IMAGE)
RUN_apptainer = bash scripts/train_in.sh apptainer $(SIF)
ifeq ($(RUN_$(IN)),)
$(error IN=$(IN): it is venv, docker or apptainer)
endif

.PHONY: image
image: ## Build the Docker image IMAGE (BASE_IMAGE=, DEVEL_IMAGE=: from other base images)
	@BASE_IMAGE='$(BASE_IMAGE)' DEVEL_IMAGE='$(DEVEL_IMAGE)' bash scripts/build_image.sh $(IMAGE) $(ARGS)

.PHONY: sif
sif: ## Build the Apptainer image SIF from apptainer.def, or with FROM=docker from IMAGE
	@BASE_IMAGE='$(BASE_IMAGE)' DEVEL_IMAGE='$(DEVEL_IMAGE)' bash scripts/build_sif.sh $(SIF) $(FROM) $(IMAGE)

.PHONY: test-image
test-image: ## Build the images, run the tests in one, and try both as a user does
	@$(MAKE) image ARGS='--target test' IMAGE=$(IMAGE)-test
	@docker image rm $(IMAGE)-test >/dev/null
	@$(MAKE) test-containers

.PHONY: test-same-image
test-same-image: ## Build the image twice, the second time from nothing, and compare every file
	@$(MAKE) image ARGS=
	@$(MAKE) image IMAGE=$(IMAGE)-again ARGS=--no-cache
	@python3 scripts/compare_images.py $(IMAGE) $(IMAGE)-again || found=$$?; \
	docker image rm $(IMAGE)-again >/dev/null; exit $${found:-0}

.PHONY: test-containers
test-containers: $(STAMP) $(OPS) ## Build the images and try them as a user does, without the tests in one
	@$(MAKE) image ARGS=
	@if command -v apptainer >/dev/null; then $(MAKE) sif; else echo 'no .sif: this machine has no apptainer'; fi
	@NEUSCALE_TEST_IMAGE=$(IMAGE) NEUSCALE_TEST_SIF='$(SIF)' $(BIN)/pytest -m containers tests/containers $(ARGS)

.PHONY: test-cluster
test-cluster: $(STAMP) ## Run what needs a Slurm cluster of two nodes; NEUSCALE_TEST_SIF=FILE: in an image as well
	@$(BIN)/pytest -m cluster tests/cluster $(ARGS)

.PHONY: up
up: ## Prepare, train and show in TensorBoard, with docker compose (on the CPU where there is no GPU)
	@docker image inspect $(IMAGE) >/dev/null 2>&1 || $(MAKE) image
	@NEUSCALE_IMAGE=$(IMAGE) bash scripts/compose.sh up $(ARGS)

.PHONY: down
down: ## Stop what make up started; it saves first, and make up goes on
	@NEUSCALE_IMAGE=$(IMAGE) bash scripts/compose.sh down $(ARGS)

.PHONY: shell
shell: ## Open a shell in the image, on ./data and ./runs
	@NEUSCALE_IMAGE=$(IMAGE) bash scripts/compose.sh run --rm shell

.PHONY: tensorboard
tensorboard: $(STAMP) ## Show the curves of all runs in the browser, on PORT=6006
	@$(BIN)/tensorboard --logdir "$${NEUSCALE_RUNS:-runs}" --port $(PORT)

# Rebuilt when one of its sources changes; built with the torch of this environment, whose headers it needs.
$(OPS): $(STAMP) $(shell find cuda_ops -type f -not -path '*/build/*' -not -path '*/tests/*' -not -name '*.pyc')
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation \
		--reinstall-package neuscale_ops $(if $(CUDA),-C cmake.define.NEUSCALE_OPS_CUDA=$(CUDA)) ./cuda_ops
	@$(BIN)/python -W ignore -c 'from neuscale_ops import build_info as b; \
		print("neuscale_ops:", *(n.upper() for n in ("cpu", "cuda") if b()[n]), "built")'
	@touch $@

.PHONY: ops
ops: $(OPS) ## Build and install the native ops (CUDA=ON: fail without nvcc; CUDA=OFF: CPU only)

.PHONY: test-gpu
test-gpu: $(OPS) ## Run what needs an NVIDIA GPU, and write its measurements to benchmarks/results (ARGS=ARCHIVE of CIFAR-10)
	@bash scripts/test_gpu.sh $(BIN)/python $(ARGS)

# Files run in their own order: sorted by number of tests, those that start many processes would run last.
.PHONY: test
test: $(STAMP) $(OPS) ## Run the tests, with lint and types first
	@$(MAKE) lint
	@OMP_WAIT_POLICY=passive $(BIN)/pytest $(PYTEST_JOBS) --no-loadscope-reorder $(ARGS)

FUZZ_EXAMPLES ?= 5000
.PHONY: test-fuzz
test-fuzz: $(STAMP) $(OPS) ## Try FUZZ_EXAMPLES=5000 damaged files on each parser, others every time (minutes)
	@NEUSCALE_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/pytest $(PYTEST_JOBS) --timeout 3600 tests/fuzz $(ARGS)

.PHONY: test-mutants
test-mutants: $(STAMP) $(OPS) ## Plant known bugs one at a time, and count those that the tests catch (ARGS=--chosen: a dozen)
	@$(BIN)/python scripts/test_mutants.py $(ARGS)

# Tests of code that uses torch, torchvision, Accelerate, numpy, Hydra or Typer; other code does not depend on
# their versions.
LOWEST := tests/config tests/models tests/training tests/runs tests/data/test_loader.py tests/data/test_loaders_agree.py \
	tests/data/test_prepare.py tests/evaluation/test_evaluate.py tests/cli/test_train_and_eval.py \
	tests/cli/test_library_models.py tests/cli/test_tracking.py tests/cli/test_startup.py tests/cli/test_hub.py \
	$(addprefix cuda_ops/tests/test_,bias_gelu_values.py torch_features.py transforms.py crop_flip_normalize.py)
.PHONY: test-lowest
test-lowest: $(STAMP) ## Run tests with the oldest versions that pyproject.toml allows, in .venv-lowest
	@bash scripts/test_lowest.sh .venv-lowest $(PYTEST_JOBS) $(LOWEST) $(ARGS)

.PHONY: lint
lint: $(STAMP) $(OPS) ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/mypy

.PHONY: format
format: $(STAMP) ## Put the code into the house style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: results
results: $(STAMP) ## Gather finished runs into benchmarks/results/experiments.csv, and write the README's tables
	@$(BIN)/python benchmarks/experiments.py $(ARGS)
	@$(BIN)/python benchmarks/readme.py

.PHONY: lock
lock: $(STAMP) ## Resolve the requirements again, with hashes (ARGS=--upgrade for newer versions)
	@bash scripts/lock.sh $(BIN)/uv $(ARGS)

.PHONY: clean
clean: ## Remove .venv and caches; data and runs stay
	rm -rf $(VENV) .venv-lowest .mypy_cache .ruff_cache .pytest_cache .hypothesis dist cuda_ops/build
	find . -name __pycache__ -type d -not -path './data/*' -not -path './runs/*' -prune -exec rm -rf {} +
