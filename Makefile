# make train, make test, make check; `make help` says what they take.

VENV := .venv
BIN := $(VENV)/bin

# A virtual environment that is there keeps its Python and its torch until another is asked for.
PYTHON ?= $(or $(wildcard $(BIN)/python),python3)
TORCH ?= $(or $(shell cat $(VENV)/.torch 2>/dev/null),torch)
EXTRAS ?= video,report
ARGS ?=

PIP := $(BIN)/python -m pip --disable-pip-version-check
SHOW_VERSION := import sys; print(sys.version)
comma := ,
DEFAULT_ENV := $(if $(filter env=% resume=%,$(ARGS)),,env=MemoryMaze)

.DEFAULT_GOAL := help
.PHONY: help train test test-training test-original test-processes test-compile test-slow test-gpu \
	reliability reliability-short check docs links clean FORCE

help:
	@echo "make train      train an agent; ARGS='env=TMaze total_steps=100000' are its options"
	@echo "make test       the fast tests"
	@echo "make test-training  the tests that train agents for seconds, minutes in total"
	@echo "make test-original  the comparisons with the original Memory Maze, minutes"
	@echo "make test-processes  the trainings in several processes, minutes"
	@echo "make test-compile  the tests of torch.compile and torch.export, minutes"
	@echo "make test-slow  the tests that train until something is learned, minutes each"
	@echo "make test-gpu   the tests that need a CUDA device"
	@echo "make reliability  faults by the thousand, counted (docs/reliability.md), hours"
	@echo "make reliability-short  the same with few cases, two minutes"
	@echo "make check      lint, format, spelling, prose, types and the layers of the package"
	@echo "make docs       the documentation site, in build/docs"
	@echo "make links      ask every external link of the documentation for an answer"
	@echo "make clean      remove $(VENV), builds and caches; runs/ stays"
	@echo
	@echo "All install into $(VENV) first, once. PYTHON=python3.12 picks the Python,"
	@echo "TORCH=torch==2.13.0 the torch, EXTRAS=video what else is installed."

train: $(VENV)/.installed
	$(BIN)/python -m mtxl_rl.train $(strip $(DEFAULT_ENV) $(ARGS))

# One thread per process: with more threads than cores, torch's threads wait for one another.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup
# Some tests pass inputs that the shape checks of the other tests refuse, or compile, or are many. Without ARGS only
# the files with such tests are collected, to save time.
UNCHECKED = --jaxtyping-packages= \
	$(if $(strip $(ARGS)),,$(shell grep -rlE 'mark\.(unchecked|compile)' tests --include='test_*.py'))
FAST = not slow and not gpu and not compile and not original and not processes and not training

CHECKED_TESTS = $(PYTEST) -m "$(FAST) and not unchecked" $(ARGS)
UNCHECKED_TESTS = $(PYTEST) $(UNCHECKED) -m "$(FAST) and unchecked" $(ARGS)

# With ARGS one of the two sessions may be empty (pytest's exit code 5), but not both.
test: $(VENV)/.installed-dev
ifeq ($(strip $(ARGS)),)
	$(CHECKED_TESTS)
	$(UNCHECKED_TESTS)
else
	$(CHECKED_TESTS) && { $(UNCHECKED_TESTS) || test $$? = 5; } || { test $$? = 5 && $(UNCHECKED_TESTS); }
endif

test-training: $(VENV)/.installed-dev
	$(PYTEST) -m "training and not slow and not unchecked" $(ARGS)

test-original: $(VENV)/.installed-dev
	$(PYTEST) -m "original" $(ARGS)

test-processes: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "processes and not slow" $(ARGS)

test-compile: $(VENV)/.installed-dev
	$(PYTEST) $(UNCHECKED) -m "compile and not slow" $(ARGS)

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slow and not compile" $(ARGS)

test-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m gpu $(ARGS)

# Each program prints its seed, the counts and every failure. SIZE multiplies the numbers of cases.
SIZE ?= 1
KILLS ?= 200
SOAK ?= 10000000
RELIABILITY = inputs spaces files environments disk load

reliability: $(VENV)/.installed-dev
	for program in $(RELIABILITY); do MTXL_RL_RELIABILITY=$(SIZE) OMP_NUM_THREADS=1 \
		$(BIN)/python tests/reliability/$$program.py $(ARGS) || exit 1; done
	$(if $(filter 0,$(KILLS)),,OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/kills.py --kills $(KILLS))
	$(if $(filter 0,$(KILLS)),,MTXL_RL_KILLS=$(KILLS) OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
		-m slow tests/runtime/test_failures.py -k many_times)
	$(if $(filter 0,$(SOAK)),,OMP_NUM_THREADS=1 $(BIN)/python tests/reliability/soak.py --steps $(SOAK))

reliability-short:
	$(MAKE) reliability SIZE=0.02 KILLS=0 SOAK=0

check: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/rumdl check
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_prose.py

docs: $(VENV)/.installed-dev
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . build/docs

# Needs a network: asks every external link of the documentation for an answer.
links: $(VENV)/.installed-dev
	$(BIN)/sphinx-build --quiet -b linkcheck -c docs . build/links

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find mtxl_rl tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The files below .venv record what is installed. The two that hold a text are rewritten only when
# it changes, so that a second `make train` installs nothing.

$(VENV)/.installed: pyproject.toml $(VENV)/.torch $(VENV)/.extras
	@echo "installing mtxl_rl[$(EXTRAS)] into $(VENV); the first time takes minutes"
	@$(PIP) install --quiet --editable ".$(if $(EXTRAS),[$(EXTRAS)])"
	$(GET_TEXTURES)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.torch $(VENV)/.extras
	@echo "installing mtxl_rl[$(EXTRAS)$(if $(EXTRAS),$(comma))dev] into $(VENV); the first time takes minutes"
	@$(PIP) install --quiet --editable ".[$(EXTRAS)$(if $(EXTRAS),$(comma))dev]"
	$(GET_TEXTURES)
	@touch $@ $(VENV)/.installed

$(VENV)/.extras: FORCE $(VENV)/.python
	@test "$$(cat $@ 2>/dev/null)" = "$(EXTRAS)" || echo "$(EXTRAS)" > $@

$(VENV)/.torch: FORCE $(VENV)/.python
	@test "$$(cat $@ 2>/dev/null)" = "$(TORCH)" || { \
		echo "installing $(TORCH) into $(VENV)"; \
		$(PIP) install --quiet $(TORCH) && echo "$(TORCH)" > $@; }

# Memory Maze's pictures, from labmaze's wheel; without a network its procedural ones take their place.
define GET_TEXTURES
@$(BIN)/python -m mtxl_rl.get_textures || \
	echo "continuing without: env=MemoryMaze draws procedural textures, which differ from the original's"
endef

# Python's version, and the virtual environment made with it.
$(VENV)/.python: FORCE
	@command -v $(PYTHON) >/dev/null || { \
		echo "PYTHON=$(PYTHON) is not a program here; give one, as in PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@asked="$$($(PYTHON) -c "$(SHOW_VERSION)")"; \
	there="$$($(BIN)/python -c "$(SHOW_VERSION)" 2>/dev/null)"; \
	test "$$there" = "$$asked" || $(PYTHON) -m venv --clear $(VENV) || exit 1; \
	test "$$(cat $@ 2>/dev/null)" = "$$asked" || { \
		$(PIP) install --quiet --upgrade pip && echo "$$asked" > $@; }

define CHECK_PYTHON
import sys
version = sys.version.split()[0]
if sys.version_info < (3, 11):
    sys.exit(f"mtxl_rl needs Python 3.11 or later and this is {version}; use PYTHON=python3.12")
endef
export CHECK_PYTHON
