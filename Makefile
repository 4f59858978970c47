# `make demo` and `make test` need Python 3.11+, make and (for the C++ kernels) a C++ compiler; all else is installed in .venv.
PYTHON ?= python3
VENV ?= .venv
# More options for the line that installs torch, e.g. TORCH_ARGS="--index-url …" to choose its CPU or another CUDA build.
TORCH_ARGS ?=
PYTEST_ARGS ?=
# Two processes with one thread each are faster on two cores than one process with two.
SIDE_BY_SIDE := OMP_NUM_THREADS=1
DEMO_ARGS ?=

CONSTRAINTS := requirements/constraints.txt
FLOOR := requirements/floor.txt
FLOOR_VENV ?= .venv-floor
# What `make test-floor` runs.
FLOOR_TESTS := $(addprefix tests/,cli data evaluation integrations losses models ops training)
# The checkout without what is built or ignored, in $$copy, until the shell ends.
BARE_COPY = copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && \
	git ls-files -z --cached --others --exclude-standard | tar c --null --files-from=- | tar x -C "$$copy"
# What `make sanitize` runs, in one process.
SANITIZE_TESTS := tests/ops tests/losses
SANITIZE_SECONDS ?= 60
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := $(wildcard setup.py CMakeLists.txt kernels/cpu/*)

.PHONY: help demo test test-all test-floor sanitize lint format types build benchmark gpu-rehearsal clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

demo: build ## train and compare on drawn scenes: base, text, instruct, then three arms (at most 15 minutes)
	$(BIN)/elva demo $(DEMO_ARGS)

test: build ## the tests, without those marked slow
	$(SIDE_BY_SIDE) $(BIN)/python -m pytest -n 2 -m "not slow" $(PYTEST_ARGS)

test-all: build ## every test
	$(SIDE_BY_SIDE) $(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

test-floor: $(FLOOR_VENV)/.built ## tests on the oldest promised versions, from a bare checkout without the C++ kernels
	$(BARE_COPY) && cd "$$copy" && \
	    $(SIDE_BY_SIDE) PYTHONPATH="$$copy" $(abspath $(FLOOR_VENV))/bin/python -m pytest -n 2 -m "not slow" $(FLOOR_TESTS) $(PYTEST_ARGS)

# The runtimes come first into a Python that was not built with them; an interpreter leaks by design. What they say on
# standard error is not captured: they end the process, and pytest with it.
sanitize: build ## the operators' tests and fuzzer on C++ kernels with AddressSanitizer and UBSan (Linux, g++)
	$(BARE_COPY) && python=$(abspath $(BIN))/python && \
	    $(BIN)/cmake -S "$$copy" -B "$$copy/build" -DCMAKE_CXX_COMPILER=$(CXX) -DELVA_SANITIZE=ON \
	        -DELVA_PYTHON=$$python -DELVA_OUTPUT_DIRECTORY="$$copy/elva" && $(BIN)/cmake --build "$$copy/build" && \
	    cd "$$copy" && export PYTHONPATH="$$copy" OMP_NUM_THREADS=1 ASAN_OPTIONS=detect_leaks=0 && \
	    export LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so.6)" && \
	    $$python -m pytest --capture=sys -m "not slow" $(SANITIZE_TESTS) $(PYTEST_ARGS) && \
	    $$python -m pytest --capture=sys tests/fuzz/test_operators_and_losses.py --fuzz-seconds $(SANITIZE_SECONDS)

lint: build ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: build ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: build ## mypy
	$(BIN)/mypy

benchmark: build ## pytest-benchmark over benchmarks/, every rival that is installed beside ours
	$(PIP) install --quiet -c $(CONSTRAINTS) --no-build-isolation -e ".[benchmark]"
	$(BIN)/python -m pytest --benchmark $(PYTEST_ARGS)

gpu-rehearsal: build ## what benchmarks.gpu asks of a GPU, on the CPU at small sizes
	out=$$(mktemp -d) && trap 'rm -rf "$$out"' EXIT && \
	    $(BIN)/python -m benchmarks.gpu check --device cpu --out "$$out" && \
	    $(BIN)/python -m benchmarks.gpu bench --device cpu --out "$$out" && \
	    $(BIN)/python -m benchmarks.gpu step --device cpu --out "$$out" && \
	    $(BIN)/python -m benchmarks.gpu report "$$out" --docs "$$out" --results "$$out"

build: $(VENV)/.built ## the virtual environment, the pinned dependencies, the native kernels

CHECK_PYTHON = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "elva needs Python 3.11 or newer, $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'

# torch goes in by itself first: with it in place no other package asks for another build of it.
$(VENV)/.torch: $(CONSTRAINTS)
	$(CHECK_PYTHON)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet -c $(CONSTRAINTS) --upgrade pip setuptools
	$(PIP) install -c $(CONSTRAINTS) $(TORCH_ARGS) torch
	$(PIP) install --quiet -c $(CONSTRAINTS) cmake ninja
	@touch $@

$(FLOOR_VENV)/.built: $(FLOOR)
	$(CHECK_PYTHON)
	test -x $(FLOOR_VENV)/bin/python || $(PYTHON) -m venv $(FLOOR_VENV)
	$(FLOOR_VENV)/bin/python -m pip --disable-pip-version-check install --quiet $(TORCH_ARGS) $$(grep ^torch= $(FLOOR))
	$(FLOOR_VENV)/bin/python -m pip --disable-pip-version-check install --quiet -r $(FLOOR)
	@touch $@

$(VENV)/.built: $(VENV)/.torch pyproject.toml $(NATIVE)
	$(PIP) install -c $(CONSTRAINTS) --no-build-isolation -e ".[dev]"
	@touch $@

clean: ## remove what was built and cached; the virtual environment stays
	rm -rf build dist *.egg-info elva/_C*.so $(VENV)/.built
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find benchmarks elva kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +
