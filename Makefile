# The commands of a checkout: each sets up what it needs in .venv first.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SOURCES := setup.py pyproject.toml $(shell find fastdrop fastdrop_keras -name '*.py[x]' -o -name '*.c' -o -name '*.px[di]' -o -name '*.h' -o -name '_isas.py')
C_SOURCES := $(shell git ls-files '*.c' '*.cpp' '*.h' 2>/dev/null)

.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-asan test-debug faults matrix wheel fuzz bench \
  bench-quick docs experiments lint format clean

help:
	@echo "make demo       train on digits, a fifth of them with wrong labels, with and without dropout"
	@echo "make test       all tests but the slow ones, in a quarter of an hour"
	@echo "make test-slow  the slow tests; QUICK=1 for those of half an hour"
	@echo "make test-asan  the NumPy tests with AddressSanitizer and UBSan"
	@echo "make test-debug  the same with bounds checks and asserts"
	@echo "make faults     plant faults and see the tests fail; ONLY=fork for some"
	@echo "make matrix     every Python, NumPy, TensorFlow, PyTorch and JAX that can be had here, in a table"
	@echo "make wheel      the source archive, and a tested wheel for each Python that is here, in dist"
	@echo "make fuzz       pickles, states, configs and files at random; FUZZ_SECONDS=60 for each target"
	@echo "make bench      speed against the peers: a report in results/bench (a quarter of an hour)"
	@echo "make bench-quick  less of it, in a minute"
	@echo "make experiments  what the texts claim of dropout, tried on data: docs/experiments.md; QUICK=1"
	@echo "make docs       the documentation, as a site in build/docs"
	@echo "make lint       style, types, stubs"
	@echo "make format     let ruff lay out the code"
	@echo "make clean      remove what was built"

$(RUN):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "fastdrop needs Python 3.10 or newer: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip

# One stamp for each set of extras; all of them install the checkout itself, editable.
$(VENV)/installed-%: $(RUN) $(SOURCES)
	@echo "installing fastdrop[$*] into $(VENV): the first time takes a few minutes"
	$(RUN) -m pip install --editable '.[$*]'
	@touch $@

demo: $(VENV)/installed-examples
	$(RUN) examples/digits.py

# On two workers, of which each takes half of the files; then what measures, without neighbours.
test: $(VENV)/installed-dev
	$(RUN) -m pytest -m "not slow and not alone" --numprocesses 2 --dist worksteal
	$(RUN) -m pytest -m "not slow and alone"

test-slow: $(VENV)/installed-dev
	$(RUN) -m pytest -m "slow $(if $(QUICK),and not long)"

# Other builds stay out of the tree, with their own copy of the Python files: `build/NAME/lib`.
build/%/built: $(VENV)/installed-dev $(SOURCES) $(wildcard fastdrop/*.py fastdrop_keras/*.py)
	@echo "building fastdrop for $* in build/$*: this takes a few minutes"
	FASTDROP_BUILD=$* $(RUN) setup.py --quiet build --build-base build/$* --build-lib build/$*/lib
	@touch $@

# pytest itself, since `python -m pytest` would find the tree's own modules first. Left out is what
# is mostly TensorFlow or statistics of the same bits, and what builds its own kernels.
WITH_BUILD = PYTHONPATH=$(CURDIR)/build/$(1)/lib FASTDROP_BUILD=$(1) PYTHONMALLOC=malloc
PYTEST_NUMPY := $(VENV)/bin/pytest -p no:cacheprovider -m "not long" -k "not many_times" \
  $(addprefix --ignore tests/,jax keras torch test_examples.py test_experiments.py test_statistics.py \
  test_other_machines.py test_races.py)
LIBRARY = $(shell $(or $(CC),gcc) -print-file-name=$(1))

# No search for leaks: an interpreter leaves thousands of its own objects behind when it ends.
test-asan: build/asan/built
	$(call WITH_BUILD,asan) LD_PRELOAD="$(call LIBRARY,libasan.so) $(call LIBRARY,libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:quarantine_size_mb=64 \
	  UBSAN_OPTIONS=print_stacktrace=1 $(PYTEST_NUMPY)

test-debug: build/debug/built
	$(call WITH_BUILD,debug) PYTHONDEVMODE=1 $(PYTEST_NUMPY)

faults: $(VENV)/installed-dev
	$(RUN) -m pytest -v tests/run_faults.py $(if $(ONLY),-k $(ONLY))

matrix: $(VENV)/installed-dev
	$(RUN) tests/matrix.py

wheel: $(VENV)/installed-release
	$(RUN) tests/wheels.py

FUZZ_SECONDS ?= 60
fuzz: $(VENV)/installed-dev
	$(RUN) -m pip install --quiet atheris
	$(RUN) tests/fuzz.py --seconds $(FUZZ_SECONDS)

bench: $(VENV)/installed-bench
	$(RUN) -m bench run

bench-quick: $(VENV)/installed-bench
	$(RUN) -m bench run --quick

experiments: $(VENV)/installed-experiments
	$(RUN) -m experiments $(if $(QUICK),--quick)

docs: $(VENV)/installed-docs
	$(RUN) -m sphinx --fail-on-warning --keep-going --builder html docs build/docs
	@echo "build/docs/index.html"

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint fastdrop
	$(VENV)/bin/clang-format --dry-run --Werror $(C_SOURCES)
	$(VENV)/bin/mypy fastdrop fastdrop_jax fastdrop_keras fastdrop_torch
	$(RUN) -m mypy.stubtest fastdrop --ignore-missing-stub

format: $(VENV)/installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .
	$(VENV)/bin/clang-format -i $(C_SOURCES)

clean:
	rm -rf build dist *.egg-info $(VENV)/installed-*
	find fastdrop fastdrop_keras -name '*.so' -delete
