# make setup | demo | test | soak | bench | lock.  Everything runs in .venv, from the locked dependencies.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two test processes by default: the suite is sized for two cores.
TEST_WORKERS ?= 2

.PHONY: setup demo test lint types unit soak bench lock clean

setup: $(VENV)/.ready

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "twinload needs CPython 3.11 or later; found: $$($(PYTHON) --version). Set PYTHON=/path/to/python3.11."; exit 2; }
	@echo "Installing the locked dependencies into $(VENV) (about a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	@$(BIN)/twinload demo

test: lint types unit

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup
	@$(BIN)/mypy

unit: setup
	@$(BIN)/python -m pytest -q -n $(TEST_WORKERS) --dist loadgroup -m "not soak and not serial"
	@$(BIN)/python -m pytest -q -m "serial and not soak"

soak: setup
	@$(BIN)/python -m pytest -q -m soak --timeout 3600

bench: setup
	@$(BIN)/python -m tests.benchmarks

# Universal resolution for every supported Python; see CONTRIBUTING.md.
lock: setup
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	    --override overrides.txt --no-emit-index-url --no-emit-find-links --no-header --no-annotate --upgrade \
	    --quiet -o requirements.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
