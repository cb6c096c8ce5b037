# make setup   only set up                                make test        set up and run the everyday tests
# make train   set up and run the default experiment      make test-slow   the others: whole runs, stopped, resumed, swept
# make check   format, lint, types, import rules          make clean-runs  remove the runs in outputs/
# make docs    the documents as a site in site/           make newest      all tests with the newest versions
.DEFAULT_GOAL := help
SHELL := /bin/bash
unexport PYTHONDONTWRITEBYTECODE  # else every process that a test starts would compile the package again
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed

NEWEST := .venv-newest
WORKERS := --numprocesses auto --maxprocesses 4 --dist loadfile
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest $(WORKERS)

.PHONY: help setup train test test-slow check docs newest clean-runs

help:
	@sed -n '1,4s/^# //p' Makefile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed; name one: make PYTHON=python3.12")'
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	@echo "Installing the pinned dependencies (about 6 GB, some minutes the first time) ..."
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,sweeps,export]'
	@touch $@
	@echo "Set up."

train: setup
	@echo "Training with the default configuration ..."
	@$(RUN) -m idh_lightning.train $(ARGS)

test: setup
	@echo "Running the everyday tests ..."
	@$(PYTEST) -m "not slow" $(ARGS)

test-slow: setup
	@echo "Running the slow tests ..."
	@$(PYTEST) -m slow $(ARGS)

check: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

docs: setup
	@$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	@$(RUN) docs/reference/generate_configuration.py
	@NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict
	@echo "Open site/index.html."

# Not the pinned versions but the newest that pyproject.toml allows, in an environment of its own.
newest:
	@test -x $(NEWEST)/bin/python || $(PYTHON) -m venv $(NEWEST)
	@echo "Installing the newest allowed dependencies into $(NEWEST) (about 6 GB the first time) ..."
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
		--editable '.[dev,sweeps,export]'
	@$(NEWEST)/bin/python -m pip freeze --exclude-editable | diff constraints.txt - | grep '^>' || true
	@OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest $(WORKERS) $(ARGS)

clean-runs:
	@echo "Removing every run in outputs/ (cohorts and the volume store stay) ..."
	@rm -rf outputs/20* outputs/sweeps
