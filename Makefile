# make quickstart    the whole chain on two CPU cores: simulated events, tokens, one transformer, report, registry
# make test          the tests; make test-all: also the slow ones (other launchers, Slurm, whole recipes)
# Both create .venv and install what they need when it is not there yet. Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help quickstart test test-all lint format docs clean
# Two pips must not write into one environment.
.NOTPARALLEL:

help:
	@echo "make quickstart   run recipes/quickstart.yaml; results in runs/quickstart"
	@echo "make test         run the tests"
	@echo "make test-all     run the slow tests too"
	@echo "make lint         ruff and mypy"
	@echo "make format       let ruff format the code and sort the imports"
	@echo "make docs         build the documentation into site/"
	@echo "make clean        remove what was built; runs/ and the packages in $(VENV)/ stay"

quickstart: $(VENV)/.installed-simulate
	$(BIN)/foundation run recipes/quickstart.yaml

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.installed-*
	find foundation tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per extra of pyproject.toml. Editable, so that the recipes and cards of this checkout are the ones in use.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	@echo "installing foundation-hep[$*] into $(VENV); this takes a few minutes the first time"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) > /dev/null || { \
	  echo "no $(PYTHON) here: install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version), but Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$(PYTHON) could not make $(VENV) (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
