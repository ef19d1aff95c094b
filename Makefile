# Everything runs in .venv, which is made when it is missing.
#   make test PYTHON=python3.12     another interpreter
#   make test UV=1                  uv in place of pip

VENV ?= .venv
PYTHON ?= python3
UV ?= 0
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=
WORKERS ?= 2
GOLDEN ?=

ifeq ($(UV),1)
MAKE_VENV = uv venv --python $(PYTHON) $(VENV)
PIP_INSTALL = uv pip install --python $(BIN)/python
else
MAKE_VENV = $(PYTHON) -m venv $(VENV)
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check
endif

# Tests never reach for a network, and one thread a worker keeps them fast and repeatable.
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 WANDB_MODE=offline
PYTEST := $(OFFLINE) $(BIN)/python -m pytest -n $(WORKERS)

.PHONY: help install quickstart test test-all lint format bench wheel

help:
	@echo "install     make $(VENV) and install the package in it, with the tested versions"
	@echo "quickstart  the whole procedure on the built-in data set (ARGS='seed=1' for overrides)"
	@echo "test        the tests, with coverage"
	@echo "test-all    also those marked slow, and those that need a GPU where there is one"
	@echo "lint        ruff and mypy"
	@echo "format      ruff, with changes"
	@echo "bench       the benchmarks (GOLDEN='FILE...' adds the comparison with the official code)"
	@echo "wheel       the distributable files in dist/"

install: $(STAMP)

# torch comes first and by its exact version, so that no open range can choose another build of it.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(MAKE_VENV)
	$(PIP_INSTALL) "$$(grep '^torch==' constraints.txt)"
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: $(STAMP)
	$(BIN)/minillm-recipe recipe=quickstart $(ARGS)

test: $(STAMP)
	$(PYTEST) -m "not slow and not gpu" --cov --cov-report=term $(ARGS)

test-all: $(STAMP)
	$(PYTEST) --cov --cov-report=term $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

BENCH := outputs/bench/v8192

bench: $(STAMP)
	test -s $(BENCH)/prompts.json || $(BIN)/python benchmarks/make_workload.py $(BENCH) --vocabulary 8192
	for lm in --no-lm --lm; do $(BIN)/python benchmarks/outer_iteration.py --student $(BENCH)/student \
		--teacher $(BENCH)/teacher --prompts $(BENCH)/prompts.json --threads 2 $$lm $(ARGS) || exit 1; done
	$(BIN)/python benchmarks/kill_resume.py
	$(if $(GOLDEN),$(BIN)/python benchmarks/official_parity.py $(GOLDEN))

wheel: $(STAMP)
	$(BIN)/python -m build
