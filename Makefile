# make run, make test, make setup: each does all set-up it needs first (seconds when nothing changed).
#
#   make run ARGS="--model DIR --replicas N --port P --device cpu|cuda"
#   make test PYTEST_ARGS="tests/kv -k swap"

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup run test lint

ARGS ?=
PYTEST_ARGS ?=

# What is installed follows the device the server is asked for; set-up looks for a GPU when neither says.
args := $(subst =, ,$(ARGS))
DEVICE ?= $(if $(findstring --device cuda,$(args)),cuda,$(if $(findstring --device cpu,$(args)),cpu))
export DEVICE

help:
	@echo 'make run     set up .venv and serve on http://127.0.0.1:8000 (ARGS="--model DIR --replicas N --port P --device cpu|cuda")'
	@echo 'make test    set up .venv and run the whole test suite (PYTEST_ARGS="tests/kv -k swap" for a part)'
	@echo 'make lint    set up .venv and run ruff and mypy'
	@echo 'make setup   set up .venv alone (DEVICE=cpu|cuda, PYTHON=python3.12 to choose)'

setup:
	@scripts/setup.sh

run:
	@scripts/setup.sh
	@exec .venv/bin/fastswitch serve $(ARGS)

test:
	@scripts/setup.sh --dev
	.venv/bin/python -m pytest $(PYTEST_ARGS)

lint:
	@scripts/setup.sh --dev
	@failed=; for check in 'ruff check .' 'ruff format --check .' mypy; do \
		echo "$$check"; .venv/bin/$$check || failed+=" $${check%% *}"; done; \
	[ -z "$$failed" ] || { echo "lint: failed:$$failed" >&2; exit 1; }
