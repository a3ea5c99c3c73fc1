# `make demo` and `make test` do everything on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Paddle in its CPU build by default; `make EXTRA=gpu ...` needs Paddle's package index configured in pip.
EXTRA  ?= cpu
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test test-fast lint format clean

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e ".[$(EXTRA)]"
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) -e ".[$(EXTRA),train,dev]"
	@touch $@ $(VENV)/.run

demo: $(VENV)/.run ## install, then answer a question about a picture, offline
	$(BIN)/qvl infer --profile demo examples/shapes.png --prompt "Describe this picture." --max-new-tokens 24 --stats

lint: $(VENV)/.dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## lint, then every test
	$(BIN)/python -m pytest -n 2

test-fast: lint ## lint, then the tests that take moments
	$(BIN)/python -m pytest -n 2 -m "not slow"

format: $(VENV)/.dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
