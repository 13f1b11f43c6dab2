# Thin shells around what one would type: `pip install .`, `bertbin-tf demo`, `pytest`, `ruff`.
# `make demo ARGS=--compare` and `make test ARGS="-k optimizers"` pass arguments on.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint notebooks docs clean

demo: .venv/installed
	$(BIN)/bertbin-tf demo $(ARGS)

test: .venv/installed-test
	$(BIN)/pytest $(ARGS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The .py is the source: run it and keep its outputs in the .ipynb beside it.
notebooks: .venv/installed-test
	$(BIN)/python notebooks/build.py

# The site, into site/; a broken link or a name that does not exist is an error.
docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --site-dir site

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python setup.cfg pyproject.toml
	$(BIN)/pip install --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/pip install --editable ".[test]"
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/pip install --editable ".[docs]"
	touch $@

clean:
	rm -rf .venv
