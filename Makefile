# Two commands on a fresh machine: `make demo` and `make test`. PYTHON picks the interpreter, 3.11 to 3.13.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/quickstart
BIN := $(VENV)/bin
# As a path: with setuptools' finder, a script beside the clone would find the clone's folder as an empty package.
EDITABLE := --config-settings editable_mode=compat
# Only tests need PyTorch, and not its gigabytes of CUDA. Where there is no such build (macOS): make test TORCH=torch
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo test lint install clean

install: $(VENV)/.installed

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13) and "growlm needs Python 3.11, 3.12 or 3.13; this is " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created requirements.txt pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(EDITABLE) --no-deps --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(EDITABLE) --editable '.[test]'
	touch $@

$(VENV)/.tried-torch: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 30 --extra-index-url $(TORCH_INDEX) '$(TORCH)' accelerate 2>/dev/null \
		|| echo 'make: there is no $(TORCH) here: the tests that compare with PyTorch are skipped'
	touch $@

# Trains a small model, grows it, trains on, and compares it with its controls. Started again it goes on.
demo: $(VENV)/.installed
	$(BIN)/growlm sweep --config=experiments/quickstart.py --workdir=$(WORKDIR)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint $(VENV)/.tried-torch
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
