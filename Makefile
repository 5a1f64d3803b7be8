# Two commands on a fresh machine: `make demo` and `make test`. Both build .venv by themselves.
PYTHON ?= python3
BIN := .venv/bin

# Tests run in one process a core, so each computes with one thread.
# A process that crashes ends the run: the others would wait for it.
PYTEST_OPTIONS := -m pytest --numprocesses auto --dist loadfile --max-worker-restart 0
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST_OPTIONS)
# -P: the package that was built, not the sources in this folder, which lack the compiled part.
PYTEST_ENGINE := cd engine && OMP_NUM_THREADS=1 ../$(BIN)/python -P $(PYTEST_OPTIONS)

.PHONY: demo fuzz test test-all test-cuda test-lowest test-engine-sanitized coverage constraints check docs format clean

# Scans of the demo's test split as files: what `predict` takes.
define WRITE_TEST_SCANS
import csv
from skipnets.data import open_dataset
digits = open_dataset("digits")
with open("runs/demo/splits.csv", newline="") as file:
    tested = [int(row["path"].split("/")[1]) for row in csv.DictReader(file) if row["split"] == "test"]
for number in tested[:5]:
    digits.open(number).save(f"runs/demo/scan-{number:04d}-shows-{digits.classes[digits.labels[number]]}.png")
endef
export WRITE_TEST_SCANS

demo: .venv/installed-train .venv/engine
	rm -rf runs/demo
	$(BIN)/skipnets train digits --model densenet_bc40_k12 --model-options.block-config "[4, 4, 4]" \
		--augmentation crop --epochs 20 --best-by loss --out runs/demo
	@$(BIN)/python -c "$$WRITE_TEST_SCANS"
	@if test -s .venv/engine; then echo "Five scans that training never saw, run by the native engine without PyTorch:"; \
	else echo "Five scans that training never saw:"; fi
	$(BIN)/skipnets predict runs/demo runs/demo/scan-*.png

test: check docs .venv/engine
	$(PYTEST) -m "not slow"
	! test -s .venv/engine || ($(PYTEST_ENGINE) -m "not slow")

test-all: check docs .venv/engine
	$(PYTEST)
	! test -s .venv/engine || ($(PYTEST_ENGINE))

# The core's tests with the lowest versions that pyproject.toml declares, in an environment of their own.
CORE_TESTS := tests/test_errors.py tests/test_files.py tests/cli/test_output.py tests/cli/test_paths.py \
	tests/data/test_decoding.py tests/data/test_sources.py tests/data/test_splits.py tests/runtimes/test_model_file.py

test-lowest: .venv/installed-dev
	rm -rf .venv/lowest
	$(BIN)/python -m tests.helpers.requirements lowest > .venv/lowest.txt
	$(PYTHON) -m venv .venv/lowest
	.venv/lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv/lowest.txt \
		. pytest pytest-timeout hypothesis
	.venv/lowest/bin/python -m pytest --noconftest -m "not slow" $(CORE_TESTS)
	$(BIN)/python -m pytest tests/test_installation.py -k lowest

coverage: .venv/installed-dev .venv/engine
	$(PYTEST) -m "not slow" --cov --cov-report term --cov-report html:site-coverage

# What the installed versions are, for constraints.txt. To renew them: make clean constraints.
constraints: .venv/installed-dev
	@(sed -n '/^#/p' constraints.txt; $(BIN)/python -m tests.helpers.requirements tested) > constraints.tmp
	@mv constraints.tmp constraints.txt

# Coverage-guided fuzzing of every reader of files, each for so many seconds.
FUZZ_SECONDS ?= 60

fuzz: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "atheris>=3.0"
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

# The tests that need an NVIDIA GPU.
test-cuda: .venv/installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cuda

# The engine's own tests under AddressSanitizer and UBSan, then its threads under ThreadSanitizer.
test-engine-sanitized: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check nanobind
	engine/tests/sanitized.sh $(CURDIR)/$(BIN)/python address,undefined libasan.so tests
	engine/tests/sanitized.sh $(CURDIR)/$(BIN)/python thread libtsan.so tests/test_engine.py \
	    tests/test_training.py tests/test_residual_block.py tests/test_stem.py tests/test_transition.py \
	    tests/test_kernels.py::test_strips_of_two_convolutions \
	    -k "not fork"

check: .venv/installed-dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports

# Into site/, with every figure drawn anew; a broken link or reference is an error.
docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true OMP_NUM_THREADS=1 $(BIN)/mkdocs build --quiet --strict

format: .venv/installed-dev
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

$(BIN)/python:
	$(PYTHON) -m venv .venv

# One stamp a set of extras, renewed when pyproject.toml changes.
.venv/installed-%: pyproject.toml | $(BIN)/python
	@echo "Installing skipnets[$*] into .venv (PyTorch makes this a matter of minutes)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$*]"
	touch $@

# The native engine is optional for a person; continuous integration must have it. The stamp is empty without it.
.venv/engine: $(wildcard engine/CMakeLists.txt engine/pyproject.toml engine/src/* engine/skipnets_engine/*.py) | $(BIN)/python
	@if command -v c++ > /dev/null; then \
		echo "Building the native engine"; \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check ./engine && echo built > $@; \
	elif [ "$$CI" = true ]; then \
		echo "no C++ compiler (c++): the native engine cannot be built" >&2; exit 1; \
	else \
		echo "No C++ compiler (c++) was found: going on without the native engine"; : > $@; \
	fi

clean:
	rm -rf .venv .coverage* site-coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build site
