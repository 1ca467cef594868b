# `make quickstart` is all a newcomer needs. Everything runs in .venv, which is made from requirements.lock and made
# again when that file or pyproject.toml changes. Another interpreter: make setup PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Two processes, one thread each: tests are many and small, and torch's own threads only get in each other's way.
PYTEST_ARGS ?= -q -n 2 --dist loadfile
# The second environment: what requirements.lock pins, but TransformerLens 4 and no SAELens (which wants TransformerLens 3).
VENV4 := .venv-tl4
READY4 := $(VENV4)/.ready

export HF_HUB_DISABLE_TELEMETRY = 1

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-tl4 bench lint format clean

help:
	@echo "make setup       create .venv and install what requirements.lock pins"
	@echo "make quickstart  train three small sparse autoencoders on the bundled model and make a report of their features"
	@echo "make test        run the tests"
	@echo "make test-tl4    run those that need no SAELens, with TransformerLens 4 and without SAELens, in .venv-tl4"
	@echo "make bench       measure speed against other libraries into reports/benchmarks: ten minutes on a quiet machine"
	@echo "make lint        ruff (rules and format) and pyright"
	@echo "make format      let ruff rewrite the code"

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	    echo "sae_tools needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing):" \
	         "name another one, as in 'make setup PYTHON=python3.12'." >&2; exit 1; }; \
	  $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install --requirement requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	@touch $@

quickstart: $(READY)
	$(BIN)/sae-train configs/quickstart.yaml --report

test: $(READY)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

$(READY4): requirements.lock pyproject.toml
	@test -x $(VENV4)/bin/python || $(PYTHON) -m venv $(VENV4)
	@grep -v -i -E '^(sae|transformer)[-_]lens==' requirements.lock > $(VENV4)/requirements.txt
	$(VENV4)/bin/python -m pip install --requirement $(VENV4)/requirements.txt
	$(VENV4)/bin/python -m pip install --no-deps transformer_lens==4.3.0
	$(VENV4)/bin/python -m pip install --no-deps --no-build-isolation --editable .
	@touch $@

test-tl4: $(READY4)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(VENV4)/bin/python -m pytest $(PYTEST_ARGS)

bench: $(READY)
	$(BIN)/python scripts/bench/step.py --repeats 7 --save
	$(BIN)/python scripts/bench/end_to_end.py --tokens 229376 --save
	$(BIN)/python scripts/bench/scaling.py --quick --save
	$(BIN)/python scripts/bench/gpu.py --save

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(VENV4) .venv-peers build *.egg-info .pytest_cache .ruff_cache .hypothesis
