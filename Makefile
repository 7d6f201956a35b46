# make setup, demo, test and check each do everything on a machine that has only Python 3.11.

VENV ?= .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
# An editable install points at one checkout, so the stamp names it: a venv that another checkout
# has used since is installed anew.
STAMP := $(VENV)/.bld-installed-$(shell pwd | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format clean

help: ## show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10
	@echo
	@echo 'VENV=$(VENV) is where the virtual environment lies, PYTHON=$(PYTHON) what makes it.'

setup: $(STAMP) ## create the venv and install everything the other targets need

# torch first and by itself, at the version of the constraints file: a CPU build at hand satisfies
# it, and nothing installed later replaces it by a CUDA build.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.bld-installed-*
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -c constraints.txt -e '.[dev,train,examples,lora,server,studio,video,batch,ray]'
	touch $@

demo: setup ## edit a photograph and say where the pictures are
	$(BIN)/python examples/demo.py

test: setup ## run every test, a file at a time on each core
	$(BIN)/python -m pytest -q -p no:cacheprovider -n auto --dist loadfile

check: setup ## formatting, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy src
	$(BIN)/lint-imports

format: setup ## put the code into the form that check wants
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove caches and build outputs (the venv and /runs stay)
	rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests examples -type d -name __pycache__ -prune -exec rm -rf {} +
