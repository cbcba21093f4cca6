# Needs Python 3.11 to 3.13 with venv and pip, make, and nothing else. `make help` lists the targets.
#
#   make quickstart                           train, evaluate and report on the embedded world
#   make test                                 lint and tests
#   make setup ACCELERATOR=cuda13             JAX for NVIDIA (cuda12, cuda13), TPU (tpu) or CPU (cpu)
#   make setup PYTHON=/usr/bin/python3.12     another interpreter

PYTHON ?= python3
ACCELERATOR ?= cpu
VENV ?= .venv

override ACCELERATORS := cpu cuda12 cuda13 tpu
override BIN := $(VENV)/bin
override INSTALLED := $(VENV)/installed-$(ACCELERATOR)

ifeq ($(filter $(ACCELERATOR),$(ACCELERATORS)),)
$(error ACCELERATOR=$(ACCELERATOR) is none of: $(ACCELERATORS))
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup scenes quickstart test test-minimum lint format benchmark clean clean-quickstart

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# ---- set-up ------------------------------------------------------------------------------------

setup: $(INSTALLED) ## install into .venv, again only when setup.cfg has changed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
	  echo "Python 3.11 to 3.13 is needed; PYTHON=$(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	    "Name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(INSTALLED): setup.cfg pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(ACCELERATOR),test]'
	@rm -f $(VENV)/installed-*
	@touch $@

# ---- checks ------------------------------------------------------------------------------------

# Tests of a file share what it sets up.
override PARALLEL := --numprocesses auto --maxprocesses 8 --dist loadfile

lint: $(INSTALLED) ## ruff: errors, import order, formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## let ruff repair what lint reports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint ## lint, then the whole suite, on all cores
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

test-minimum: .venv-minimum/installed ## the suite on the oldest versions that setup.cfg allows
	.venv-minimum/bin/python -m pytest $(PARALLEL) $(PYTEST_ARGS)

.venv-minimum/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv --clear .venv-minimum
	sed -nE 's/^ +([A-Za-z][A-Za-z0-9_-]*)(\[.*\])?>=([^, ]+).*/\1==\3/p' setup.cfg \
	  > .venv-minimum/constraints.txt
	.venv-minimum/bin/python -m pip install --quiet --disable-pip-version-check \
	  --constraint .venv-minimum/constraints.txt --editable '.[cpu,test]'
	@touch $@

# ---- quickstart --------------------------------------------------------------------------------

override SCENES := runs/scenes

quickstart: $(SCENES)/tokenizer.model ## train a small CoCa on the embedded world, score it, report
	$(BIN)/python -m big_mm.train --config configs/quickstart.py --workdir runs/quickstart

scenes: $(SCENES)/tokenizer.model ## write the embedded world that quickstart and experiments read

$(SCENES)/tokenizer.model: | $(INSTALLED)
	$(BIN)/python -m big_mm.data.scenes --out $(SCENES) --world easy --image_size 48 --num_workers 2 \
	  --splits train=20000 test_seen=500 test_unseen=500 zero_shot_seen=1000 zero_shot_unseen=1000 \
	  retrieval_seen=1000 retrieval_unseen=1000
	$(BIN)/python -m big_mm.data.tokenizers --shards '$(SCENES)/train-*.tfrecord' \
	  --schema captions=caption_short --vocab_size 512 --model_type bpe --out $@

# ---- clean -------------------------------------------------------------------------------------

clean: ## remove caches
	rm -rf .cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

clean-quickstart: ## remove what make quickstart wrote
	rm -rf runs/quickstart $(SCENES)
