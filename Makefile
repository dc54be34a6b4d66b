# `make quickstart` and `make test` need python3 (>= 3.11), make and a package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/lock.txt
STAMP := $(VENV)/.installed
WORKDIR ?= workdir/quickstart
PYTEST_ARGS ?=
PARITY_ARGS ?= --write

.PHONY: help quickstart setup test parity bench soak lock clean

help:
	@echo "make quickstart  set up .venv, train through all stages, write $(WORKDIR)"
	@echo "make test        set up .venv, run all tests (PYTEST_ARGS='-k name' for some)"
	@echo "make parity      fresh checkpoints of transformers against bigvlm; writes docs/parity.md"
	@echo "make bench       measure; one JSON line a measurement"
	@echo "make soak        the reliability tests at full counts"
	@echo "make lock        renew $(LOCK) (UPGRADE=1: newest versions)"
	@echo "make clean       remove .venv and caches; workdir/ stays"

# Remade when the lock or the package's metadata changes; anything else is picked up from the
# checkout because the install is editable.
$(STAMP): $(LOCK) setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(0 if v >= (3, 11) else "bigvlm needs Python 3.11 or newer, and $(PYTHON) is " \
	  + "%d.%d. Name another one: make PYTHON=/path/to/python3.12 ..." % v[:2])'
	@echo "[make] making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "[make] installing the versions pinned in $(LOCK) (about 1 GB, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	@echo "[make] installing bigvlm itself, editable"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --no-build-isolation -e .
	@touch $@

setup: $(STAMP)
	@echo "[make] $(VENV) is ready: $$($(BIN)/python --version)"

quickstart: setup
	@echo "[make] training: $(BIN)/bigvlm train configs/quickstart.py --workdir=$(WORKDIR)"
	@$(BIN)/bigvlm train configs/quickstart.py --workdir=$(WORKDIR)

# One test process a core is as fast as two cores get; ruff is among the tests.
test: setup
	@echo "[make] running the tests"
	@$(BIN)/python -m pytest -n 2 --dist=loadfile --no-loadscope-reorder \
	  $(PYTEST_ARGS)

# The reference lives in .venv beside bigvlm, which never imports it; what is pinned stays.
parity: setup
	@echo "[make] installing the reference: transformers, torch and peft"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 \
	  torchvision==0.28.0 transformers==5.23.0 peft==0.21.2 num2words==0.5.14
	@echo "[make] comparing with the reference"
	@$(BIN)/python -m tests.parity.live $(PARITY_ARGS)
	@$(BIN)/python -m tests.parity.positions_live
	@$(BIN)/python -m tests.parity.processors_live
	@$(BIN)/python -m tests.parity.peft_live

bench: setup
	@echo "[make] measuring"
	@$(BIN)/python -m benchmarks.run

soak: setup
	@echo "[make] soaking: full counts of the reliability tests"
	@$(BIN)/python -m benchmarks.soak

# Resolves for Python 3.11 and newer on every platform. uv lives in its own environment so that
# .venv holds what the lock says and nothing else. Pins stay as they are unless UPGRADE=1.
lock:
	@echo "[make] resolving setup.py[test] and requirements/build.in into $(LOCK)"
	@$(PYTHON) -m venv .cache/lock
	@.cache/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.cache/lock/bin/uv pip compile setup.py requirements/build.in --extra test --no-config \
	  --universal --generate-hashes --python-version 3.11 --no-emit-index-url \
	  --no-emit-find-links --custom-compile-command "make lock" --quiet \
	  $(if $(UPGRADE),--upgrade) --output-file $(LOCK) > /dev/null
	@echo "[make] done; run make test before you commit it"

clean:
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
