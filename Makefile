# make demo    the whole chain on real recordings, in minutes; ends in an HTML report
# make test    the tests
# make check   lint and types
#
# Needs Python 3.11 or later with venv, and make. Everything is installed into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/installed

.PHONY: demo test test-all check format clean
.DEFAULT_GOAL := help

help:
	@sed -n '1,7s/^# //p' Makefile

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable '.[phones,vad,debian]'
	@touch $@

demo: $(STAMP)
	$(BIN)/isogloss demo --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow'

test-all: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
