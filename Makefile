# Every target sets up what it needs: `make demo` and `make test` work on a fresh checkout.
#   make test VENV=/some/venv           an existing environment
#   make demo ARGS="--quick --seed 1"   arguments of the command behind the target
#   PIP_ARGS                            more arguments for pip, e.g. another index for CPU-only torch

VENV ?= .venv
PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# Threads that fight over two cores are ten times slower than two workers with one thread each.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo demo-annotate annotate-load test check lint world-base study-rlhf study-vision bench bench-gpu clean
.DELETE_ON_ERROR:

$(READY): pyproject.toml
	@test -x $(PY) || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing into $(VENV) (the first time takes some minutes)"
	@$(PY) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e '.[test]'
	@touch $@

demo: $(READY)
	$(PY) -m apps.cli demo $(ARGS)

# The annotation app over pairs of the built-in world; it says where to go.
demo-annotate: $(READY)
	$(PY) -m apps.annotate.demo $(ARGS)

# 50 simulated labelers at once, 200 votes each, on SQLite and on PostgreSQL where Debian's packages are.
annotate-load: $(READY)
	$(ONE_THREAD) ANNOTATE_LOAD=50x200 $(PY) -m pytest -q -s tests/apps/annotate/test_load.py $(ARGS)

test: $(READY)
	$(ONE_THREAD) $(PY) -m pytest -q -n 2 --dist loadfile --ignore=tests/bench tests $(ARGS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

check: lint test

# The built-in world's pretrained base model, from nothing.
world-base: $(READY)
	$(PY) -m apps.studies.world_base $(ARGS)

study-rlhf: $(READY)
	$(PY) -m apps.cli study rlhf $(ARGS)

study-vision: $(READY)
	$(PY) -m apps.cli study vision $(ARGS)

# Measurements; never part of `make test`.
bench: $(READY)
	$(ONE_THREAD) $(PY) -m pytest -q -s -o addopts=--import-mode=importlib -o "python_files=bench_*.py test_*.py" tests/bench $(ARGS)

# At LLaVA-1.5-7B's shape with random weights: needs a GPU of 80 GB, and 30 GB of disk for the checkpoint.
bench-gpu: $(READY)
	$(PY) -m tests.bench.bench_7b memory $(ARGS)
	$(PY) -m tests.bench.bench_7b memory --bits 4 $(ARGS)
	$(PY) -m tests.bench.bench_7b race $(ARGS)

# Caches and build leftovers. The environment and runs/ are kept: delete those yourself.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find data align evals apps tests -name __pycache__ -type d -prune -exec rm -rf {} +
