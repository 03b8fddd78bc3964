# Every target makes its own virtual environment and installs what it needs. A C++ compiler is needed once, for
# the NNC codec (about two minutes).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo

.PHONY: help demo test test-all test-sample lint bench docs clean

help:
	@echo "make demo   the whole round trip on the built-in digits: prints the tables, writes the page $(OUT)/report.html"
	@echo "make test   the tests, in some minutes"
	@echo "make test-all, test-sample   all tests, in an hour; some of the long ones, drawn by SEED"
	@echo "make lint   ruff, types, import contracts"
	@echo "make bench  the benchmarks, one table each"
	@echo "make docs   the documentation, into site/"

# A stamp per set of dependencies: installing again costs nothing until pyproject.toml changes.
$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "snello needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	touch $@

$(VENV)/.all: $(VENV)/.python pyproject.toml
	$(BIN)/pip install --quiet --editable '.[all]'
	$(BIN)/snello install-codec
	touch $@

$(VENV)/.test: $(VENV)/.all
	$(BIN)/pip install --quiet --group test
	touch $@

$(VENV)/.lint: $(VENV)/.all
	$(BIN)/pip install --quiet --group lint
	touch $@

$(VENV)/.docs: $(VENV)/.all
	$(BIN)/pip install --quiet --group docs
	touch $@

# One thread: on a machine with other work, several wait for each other in every small layer.
demo: $(VENV)/.all
	rm -rf $(OUT)
	OMP_NUM_THREADS=1 $(BIN)/snello journey digits --out=$(OUT)

# One thread per process: more of them only get in each other's way on small networks. Neighbours in a
# file share fixtures: worksteal leaves them to one process.
XDIST := -n auto --dist worksteal
test: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest $(XDIST)

test-all: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest $(XDIST) -m ""

# The tests behind the marker `exhaustive`, in an order drawn by SEED, for SECONDS. The last ones are
# finished: a minute more.
SEED ?= 0
SECONDS ?= 420
test-sample: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest $(XDIST) -m exhaustive --sample-exhaustive=$(SECONDS) --seed=$(SEED)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.all
	mkdir -p runs/bench
	$(BIN)/python benchmarks/startup.py --out runs/bench/startup.json
	$(BIN)/python benchmarks/neq_backward.py --out runs/bench/neq_backward.json
	$(BIN)/python benchmarks/simplify_latency.py --out runs/bench/simplify_latency.json
	$(BIN)/python benchmarks/index_operations.py --out runs/bench/index_operations.json
	$(BIN)/pip install --quiet --group bench
	$(BIN)/python benchmarks/simplify_zoo.py --quick --out runs/bench/simplify_zoo.json
	$(BIN)/python benchmarks/sensitivity_overhead.py --out runs/bench/sensitivity_overhead.json
	$(BIN)/python benchmarks/neq_training.py digits --quick --seeds 0 1 --adam --out runs/bench/neq_training
	$(BIN)/python benchmarks/latency.py --out runs/bench/latency.json

docs: $(VENV)/.docs
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) site runs/demo runs/bench
