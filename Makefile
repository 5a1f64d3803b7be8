# Two commands on a fresh machine: `make demo` and `make test`. Both build .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all check format clean

demo: .venv/installed-train
	rm -rf runs/demo
	$(BIN)/skipnets train digits --recipe demo-digits --out runs/demo

test: check
	$(BIN)/python -m pytest -m "not slow"

test-all: check
	$(BIN)/python -m pytest

check: .venv/installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: .venv/installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# One stamp a set of extras, renewed when pyproject.toml changes.
.venv/installed-%: pyproject.toml
	@echo "Installing skipnets[$*] into .venv (PyTorch makes this a matter of minutes)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
