# Everything runs in .venv, made from the tested versions in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-all lint conformance docs transcripts clean

demo: $(READY)
	$(BIN)/mpsearch optimize examples.minilm:build --inputs examples.minilm:samples \
		--metric max_abs --budget 1e-2 --out minilm-mixed

# What a change needs: minutes. Every module is covered.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m "not (sweep or thorough)"

# What takes long as well, and a hundred runs with every option drawn at random (tests/sweep/run.py).
test-all: test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist worksteal -m "$(THOROUGH)"

THOROUGH := thorough or sweep

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mpsearch strategies
	$(BIN)/lint-imports
	$(BIN)/python -m tests.structure

# A random thousand of Apple's own op tests; see tests/conformance/README.md.
conformance: $(READY)
	$(BIN)/python -m tests.conformance --sample 1000 -n auto

# The pages in docs/_build. The guides show transcripts; make transcripts runs their commands anew.
docs: $(READY)
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	$(BIN)/sphinx-build -q -W --keep-going -b html docs docs/_build

transcripts: $(READY)
	$(BIN)/python docs/ops.py
	$(BIN)/python docs/schemas.py
	$(BIN)/python docs/transcripts.py

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[test,examples,dev]'
	touch $(READY)

clean:
	rm -rf $(VENV) minilm-mixed docs/_build
