# Owns the commands of a checkout: each sets up what it needs in .venv first.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
SOURCES := setup.py pyproject.toml $(shell find fastdrop fastdrop_keras -name '*.py[x]' -o -name '*.c' -o -name '*.px[di]' -o -name '*.h' -o -name '_isas.py')

.DELETE_ON_ERROR:
.PHONY: help demo test test-slow bench bench-quick bench-instructions lint format clean

help:
	@echo "make demo       train on real digits with and without dropout, and plot it"
	@echo "make test       everything but the slow tests"
	@echo "make test-slow  the slow tests"
	@echo "make bench      speed against the peers: a report in results/bench (ten minutes)"
	@echo "make bench-quick  the same of less, in a minute"
	@echo "make bench-instructions  what the kernels execute for an element, against baselines"
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
	$(RUN) -m pip install --quiet --editable '.[$*]'
	@touch $@

demo: $(VENV)/installed-examples
	$(RUN) examples/digits.py

test: $(VENV)/installed-dev
	$(RUN) -m pytest -m "not slow"

test-slow: $(VENV)/installed-dev
	$(RUN) -m pytest -m slow

bench: $(VENV)/installed-bench
	$(RUN) -m bench run

bench-quick: $(VENV)/installed-bench
	$(RUN) -m bench run --quick

bench-instructions: $(VENV)/installed-dev
	$(RUN) -m bench.instructions $(INSTRUCTIONS)

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint fastdrop
	$(VENV)/bin/mypy fastdrop fastdrop_keras
	$(RUN) -m mypy.stubtest fastdrop --ignore-missing-stub

format: $(VENV)/installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf build dist *.egg-info $(VENV)/installed-*
	find fastdrop fastdrop_keras -name '*.so' -delete
