# The front door. `make help` lists the commands.
PYTHON ?= python3
PROFILE ?= laptop
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := -c constraints.txt
RUN := $(BIN)/kbit run --profile $(PROFILE) $(if $(CORPUS),-p corpus '$(CORPUS)') $(if $(MODELS),-p models '$(MODELS)') $(if $(ENGINE),--engine $(ENGINE))

.DEFAULT_GOAL := help
.PHONY: help setup report smoke test lab bench clean distclean

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.base ## make .venv from exact versions

$(VENV)/.base: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) and f"Python 3.11 to 3.13 is needed; {sys.executable} is {sys.version.split()[0]}")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable .
	touch $@

$(VENV)/.test: $(VENV)/.base
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable '.[test]'
	touch $@

report: $(VENV)/.base ## run every chapter and write reports/PROFILE/index.html (PROFILE=smoke|laptop|gpu, CORPUS=path, MODELS='["folder"]')
	$(RUN)

smoke: ## the same, small: a few minutes
	$(MAKE) report PROFILE=smoke

test: $(VENV)/.test ## the whole test suite, the chapters with the smoke profile included
	$(BIN)/python -m pytest

lab: $(VENV)/.base ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab notebooks

bench: $(VENV)/.base ## the long measurements: speed, fits and their resampling, how often intervals hold
	$(BIN)/python benchmarks/quantize.py
	$(BIN)/python benchmarks/matmul.py
	$(BIN)/python benchmarks/chinchilla.py
	$(BIN)/python benchmarks/coverage.py

clean: ## remove what was rendered; the store of results stays
	find reports -mindepth 2 -maxdepth 2 -not -path 'reports/published/*' -not -name store -exec rm -rf {} +

distclean: ## remove everything that was made, the store and .venv too
	find reports -mindepth 1 -maxdepth 1 -not -name published -exec rm -rf {} +
	rm -rf $(VENV)
