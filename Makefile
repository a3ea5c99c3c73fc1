# `make demo` and `make test` do everything on a fresh machine; `make help` lists the rest.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Paddle in its CPU build by default; `make EXTRA=gpu ...` needs Paddle's package index configured in pip.
EXTRA  ?= cpu
# The native ops are built by a target of their own, with the Paddle of the environment.
PIP    := QVL_BUILD_NATIVE=0 $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
BUILD  := build
ASK    := $(BIN)/qvl infer --profile demo

.PHONY: help demo demo-model native test test-fast lint format clean

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

# Status 3 means that there is no compiler: qvl then runs without them, slower, and says so.
native: $(VENV)/.run ## build the native ops, where something changed
	@$(BIN)/python ext/build.py || test $$? -eq 3

demo: $(VENV)/.run native ## install, then let the demo model answer about pictures and a clip, offline
	@mkdir -p $(BUILD)
	$(ASK) examples/shapes.png --prompt "Describe this picture."
	$(ASK) examples/shapes.png --prompt "Find the blue square." --boxes $(BUILD)/blue-square.png
	$(ASK) examples/before.png examples/shapes.png --prompt "What is the difference between the two pictures?"
	$(ASK) examples/moving.mp4 --prompt "What happens in the clip?"

# Each step goes on from the one before; interrupted, a run goes on where it was.
MADE  := $(BUILD)/demo
TEACH := $(BIN)/qvl finetune --profile demo-train --resume
demo-model: $(VENV)/.dev native ## make the demo model's data and train it from nothing, about an hour and a half on two cores
	test -f $(MADE)/start/tokenizer.json || $(BIN)/python -m examples.generator.start $(MADE)/start
	test -d $(MADE)/tower || $(BIN)/python -m examples.generator.tower $(MADE)/start $(MADE)/tower
	test -f $(MADE)/few/data.jsonl || $(BIN)/python -m examples.generator $(MADE)/few --split few --samples 24000
	$(TEACH) --model $(MADE)/tower --data $(MADE)/few/data.jsonl -o $(MADE)/run-few \
		--set training.train='[language]' --set training.schedule=constant --set training.epochs=1
	test -f $(MADE)/all/data.jsonl || $(BIN)/python -m examples.generator $(MADE)/all --samples 100000
	$(TEACH) --model $(MADE)/run-few/model --data $(MADE)/all/data.jsonl -o $(MADE)/run-all
	$(BIN)/python -m examples.generator.curve $(MADE)/loss.png $(MADE)/run-few $(MADE)/run-all
	rm -rf $(MADE)/model
	$(BIN)/python -c "from qvl import Engine; Engine.load('demo', model='$(MADE)/run-all/model').save('$(MADE)/model')"
	$(BIN)/python -m examples.generator.evaluate --model $(MADE)/model --samples 3000 --json $(MADE)/accuracy.json

lint: $(VENV)/.dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint native ## lint, then every test
	$(BIN)/python -m pytest -n 2

test-fast: lint native ## lint, then the tests that take moments
	$(BIN)/python -m pytest -n 2 -m "not slow"

format: $(VENV)/.dev ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches
	rm -rf $(VENV) build src/qvl/_native.* src/qvl/_native_cuda.* .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find . -name __pycache__ -prune -exec rm -rf {} +
