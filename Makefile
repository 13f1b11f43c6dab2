# Thin shells around what one would type: `pip install .`, `bertbin-tf demo`, `pytest`, `ruff`.
# `make demo ARGS=--compare` and `make test ARGS="-k optimizers"` pass arguments on.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint notebooks clean

demo: .venv/installed
	$(BIN)/bertbin-tf demo $(ARGS)

test: .venv/installed-test
	$(BIN)/pytest $(ARGS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The .py is the source: run it and keep its outputs in the .ipynb beside it.
notebooks: .venv/installed-test
	$(BIN)/python notebooks/build.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --editable ".[test]"
	touch $@

clean:
	rm -rf .venv
