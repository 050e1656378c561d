# Two commands on a fresh machine: `make demo` and `make test`. PYTHON picks the interpreter, 3.11 to 3.14.
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/quickstart
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# As a path: with setuptools' finder, a script beside the clone would find the clone's folder as an empty package.
EDITABLE := --config-settings editable_mode=compat
# Only tests need PyTorch, and not its gigabytes of CUDA. Where there is no such build (macOS): make test TORCH=torch
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
FUSE ?= mfusepy==3.1.1
# A file of versions with hashes, from which everything is installed: make test LOCK=ci.lock. Without it, from the floors.
LOCK ?=
# Neighbours share fixtures and stay together, but for what an idle worker takes over.
PYTEST := JAX_PLATFORMS=cpu $(BIN)/python -m pytest --numprocesses=auto --dist=worksteal

.PHONY: demo study results bench check test test-slow lock audit install clean

install: $(VENV)/.installed

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14) and "growlm needs Python 3.11 to 3.14, got " + sys.version.split()[0] + ": make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created requirements.txt pyproject.toml
	$(PIP) $(if $(LOCK),--require-hashes -r $(LOCK),-r requirements.txt)
	$(PIP) $(EDITABLE) --no-deps --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) $(EDITABLE) $(if $(LOCK),--no-deps) --editable '.[test]'
	touch $@

$(VENV)/.tried-torch: $(VENV)/.installed-test
	$(PIP) --retries 1 --timeout 30 --extra-index-url $(TORCH_INDEX) '$(TORCH)' accelerate 2>/dev/null \
		|| echo 'make: there is no $(TORCH) here: the tests that compare with PyTorch are skipped'
	touch $@

# A browser for the tests of the report's page. Only root can install one, where packages are Debian's.
$(VENV)/.tried-chromium: $(VENV)/.created
	if [ "$$(id -u)" = 0 ] && command -v apt-get && ! command -v chromium; then \
		apt-get update && apt-get install --yes --no-install-recommends chromium; \
	fi >/dev/null 2>&1 || echo 'make: there is no Chromium here: the tests of the page are skipped'
	touch $@

# For the tests that cut the power: a file system in Python, which Linux lets root mount, and whom it trusts with FUSE.
$(VENV)/.tried-fuse: $(VENV)/.installed-test
	$(PIP) --retries 1 --timeout 30 '$(FUSE)' 2>/dev/null || echo 'make: there is no $(FUSE) here'
	if [ "$$(id -u)" = 0 ] && command -v apt-get && [ -e /dev/fuse ] && ! ldconfig -p | grep -q 'libfuse\.so\.2'; then \
		apt-get update && apt-get install --yes --no-install-recommends libfuse2; \
	fi >/dev/null 2>&1 || echo 'make: there is no libfuse2 here'
	touch $@

# Trains a small model, grows it, trains on, and compares it with its controls. Started again it goes on.
demo: $(VENV)/.installed
	$(BIN)/growlm sweep --config=experiments/quickstart.py --workdir=$(WORKDIR)

check: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# Hours of training on one core at the lowest priority, for experiments/records. Started again it goes on.
study: $(VENV)/.installed
	JAX_PLATFORMS=cpu $(BIN)/python experiments/study/sweeps.py

# The tables and figures of all pages that come from experiments/records.
results: $(VENV)/.installed
	$(BIN)/python experiments/study/results.py

# The ratios of speed on a CPU, beside the last record: what got slower. BENCH=--write renews it.
bench: $(VENV)/.tried-torch
	JAX_PLATFORMS=cpu $(BIN)/python experiments/benchmarks/bench.py $(BENCH)

# Everything that guards a change.
test: check $(VENV)/.tried-torch
	$(PYTEST) -m 'not slow'

# The rest: every mesh, every kill, thorough properties, compilers, notebooks, docs, the page in a browser.
test-slow: $(VENV)/.tried-torch $(VENV)/.tried-chromium $(VENV)/.tried-fuse
	$(PYTEST) -m 'slow or hypothesis' --hypothesis-profile=thorough

# Renews the versions that the CI takes. Needs the network, as does the audit.
lock: $(VENV)/.created
	$(PIP) uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --extra test pyproject.toml --custom-compile-command "make lock" --output-file ci.lock

# Says which of the versions in ci.lock have known weaknesses.
audit: $(VENV)/.created
	$(PIP) pip-audit
	$(BIN)/pip-audit --disable-pip --require-hashes --requirement ci.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache
