# `make demo` and `make test` do everything on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Paddle in its CPU build by default; `make EXTRA=gpu ...` needs Paddle's package index configured in pip.
EXTRA  ?= cpu
BUILD  := build
ASK    := $(BIN)/qvl infer --profile demo
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo demo-model test test-fast lint format clean

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

demo: $(VENV)/.run ## install, then let the demo model answer about pictures and a clip, offline
	@mkdir -p $(BUILD)
	$(ASK) examples/shapes.png --prompt "Describe this picture."
	$(ASK) examples/shapes.png --prompt "Find the blue square." --boxes $(BUILD)/blue-square.png
	$(ASK) examples/shapes.png examples/changed.png --prompt "What is the difference between the two pictures?"
	$(ASK) examples/moving.mp4 --prompt "What happens in the clip?"

DATA := $(BUILD)/demo
demo-model: $(VENV)/.dev ## make the demo model's data and train it from nothing, about an hour and a half on two cores
	$(BIN)/python -m examples.generator $(DATA)/data --samples 60000
	$(BIN)/python -m examples.generator.start $(DATA)/start
	$(BIN)/qvl finetune --profile demo-train --model $(DATA)/start --data $(DATA)/data/data.jsonl -o $(DATA)/run \
		--resume --plot $(DATA)/loss.png
	$(BIN)/python -m examples.generator.evaluate --model $(DATA)/run/model --json $(DATA)/accuracy.json

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
