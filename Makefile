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

.PHONY: help install quickstart test test-all test-versions lint format docs bench bench-gpu wheel

help:
	@echo "install     make $(VENV) and install the package in it, with the tested versions"
	@echo "quickstart  the whole procedure on the built-in data set (ARGS='seed=1' for overrides)"
	@echo "test        the tests, with coverage"
	@echo "test-all    also those marked slow, and those that need a GPU where there is one"
	@echo "test-versions  a part of them with the lowest and the newest dependencies (PYTHONS='python3.10 python3.13')"
	@echo "lint        ruff and mypy"
	@echo "format      ruff, with changes"
	@echo "docs        the documentation as a web site in outputs/site, without a network; warnings are errors"
	@echo "bench       the benchmarks (GOLDEN='FILE...' adds the comparison with the official code)"
	@echo "bench-gpu   the benchmarks at the paper's sizes on a GPU (BENCH_PYTHON=python for torch's own environment)"
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

PYTHONS ?= $(PYTHON)
test-versions: $(STAMP)
	$(BIN)/python tools/test_versions.py outputs/versions $(addprefix --python ,$(PYTHONS))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

BENCH := outputs/bench
BENCH_PYTHON := $(BIN)/python
# student, teacher and prompts of a folder that make_workload.py wrote
workload = --student $(BENCH)/$(1)/student --teacher $(BENCH)/$(1)/teacher --prompts $(BENCH)/$(1)/prompts.json

$(BENCH)/v8192/prompts.json $(BENCH)/v32768/prompts.json: $(BENCH)/v%/prompts.json: $(STAMP)
	$(BENCH_PYTHON) benchmarks/make_workload.py $(@D) --vocabulary $*

bench: $(STAMP) $(BENCH)/v8192/prompts.json $(BENCH)/v32768/prompts.json
	set -e; for script in outer_iteration reference_schedule; do for lm in --no-lm --lm; do \
		$(BENCH_PYTHON) benchmarks/$$script.py $(call workload,v8192) --threads 2 $$lm $(ARGS); done; \
		$(BENCH_PYTHON) benchmarks/$$script.py $(call workload,v32768) --rollouts 32 --threads 2 --no-lm $(ARGS); done
	$(BENCH_PYTHON) benchmarks/outer_iteration.py $(call workload,v8192) --threads 2 --no-lm --method kd $(ARGS)
	$(BENCH_PYTHON) benchmarks/memory.py --threads 2
	$(BENCH_PYTHON) benchmarks/corpus_memory.py
	$(BENCH_PYTHON) benchmarks/kill_resume.py
	$(if $(GOLDEN),$(BENCH_PYTHON) benchmarks/official_parity.py $(GOLDEN))

# On a machine whose torch is built for its GPU: BENCH_PYTHON names the interpreter that has it.
GPU := --device cuda --dtype bfloat16 --rollouts 256 --batch-size 64 --max-prompt-length 256 --max-length 512 \
	--rollout-batch-size 256 --no-lm
XL := --teacher gpt2-xl --vocabulary 50257 --num-prompts 256 --prompt-lengths 256 256 --max-new-tokens 256 \
	--mean-length 255 --num-lm 0 --dtype bfloat16
QWEN := --student qwen-1.5b --teacher qwen-7b --vocabulary 152064 --num-prompts 64 --prompt-lengths 256 256 \
	--max-new-tokens 256 --mean-length 255 --num-lm 0 --dtype bfloat16

bench-gpu:
	test -s $(BENCH)/xl120/prompts.json || $(BENCH_PYTHON) benchmarks/make_workload.py $(BENCH)/xl120 \
		--student gpt2-120m $(XL)
	test -s $(BENCH)/xl340/prompts.json || $(BENCH_PYTHON) benchmarks/make_workload.py $(BENCH)/xl340 \
		--student gpt2-340m $(XL)
	test -s $(BENCH)/qwen/prompts.json || $(BENCH_PYTHON) benchmarks/make_workload.py $(BENCH)/qwen $(QWEN)
	for folder in xl120 xl340; do $(BENCH_PYTHON) benchmarks/outer_iteration.py --student $(BENCH)/$$folder/student \
		--teacher $(BENCH)/$$folder/teacher --prompts $(BENCH)/$$folder/prompts.json $(GPU) $(ARGS) || exit 1; done
	$(BENCH_PYTHON) benchmarks/outer_iteration.py $(call workload,qwen) $(GPU) --rollouts 64 --batch-size 16 $(ARGS)
	$(BENCH_PYTHON) benchmarks/memory.py --device cuda

wheel: $(STAMP)
	$(BIN)/python -m build
