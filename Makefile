# Every target works from an empty clone: what it needs is installed into .venv first, once.
#   make train PYTHON=python3.13            another Python for .venv (after `make clean`)
#   make train EXTRA=cuda12                 JAX for a GPU or TPU: cuda12, cuda13 or tpu
#   make train LOCKED=1                     the versions of uv.lock (made by `uv lock`)
#   make train ARGS="--run.steps 100"       more arguments for train.py
#   make test JOBS=8                        tests at a time (2), but for those marked `alone`

PYTHON ?= python3
EXTRA ?=
LOCKED ?=
ARGS ?=
JOBS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed$(EXTRA:%=-%)$(LOCKED:%=-locked)
INSTALLED_DEV := .venv/.installed-dev$(EXTRA:%=-%)$(LOCKED:%=-locked)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# int_lm with the dependencies of an extra, or of none
ifeq ($(LOCKED),)
install = $(PIP) --editable '.$(1:%=[%])'
else
install = $(PIP) uv && $(BIN)/uv sync --quiet --frozen --inexact $(1:%=--extra %)
endif

# Settings that would let other packages into .venv, or send ours elsewhere.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX
# Otherwise pyright asks the network whether it is the newest.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test slow long check clean

help:
	@echo "make train   pretrain a small model on this machine (configs/quickstart.yaml)"
	@echo "make test    lint, types and all tests but the slow ones"
	@echo "make slow    the slow tests"
	@echo "make long    10 000 mutated files of every format, an hour or more"
	@echo "make check   lint and types only"
	@echo "make clean   remove .venv and caches; runs are kept"
	@echo "Options: PYTHON=python3.13, EXTRA=cuda12 (or cuda13, tpu), ARGS='--run.steps 100', JOBS=8,"
	@echo "  LOCKED=1 (the package versions of uv.lock)"

train: $(INSTALLED)
	$(BIN)/python train.py --config configs/quickstart.yaml $(ARGS)

test: check
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -m "not slow and not long"

slow: $(INSTALLED_DEV)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal -m "slow and not alone"
	$(BIN)/python -m pytest -m "slow and alone"

long: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m long

check: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build *.egg-info int_lm/native/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "error: int_lm needs Python 3.11 or newer, which '$(PYTHON)' is not;" \
			"name one with PYTHON=, as in: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 2; }
	@echo "Creating .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear .venv

# What the kernels are built of: without a new build, changed ones are silently not used.
KERNELS := $(wildcard int_lm/native/*.cc int_lm/native/*.inc) int_lm/native/build.py \
	int_lm/limits.py int_lm/arithmetic/fixed.py int_lm/arithmetic/constants.py

$(INSTALLED): pyproject.toml $(KERNELS) | .venv/pyvenv.cfg
	@echo "Installing int_lm and its dependencies into .venv (a minute or two)"
	@$(call install,$(EXTRA))
	@$(BIN)/python -m int_lm.native || echo "Going on without kernels, more slowly"
	@touch $@

$(INSTALLED_DEV): $(INSTALLED)
	@echo "Installing the tools for checks and tests into .venv"
	@$(call install,dev)
	@touch $@
