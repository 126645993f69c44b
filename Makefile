# make demo    sets everything up, pretrains on embedded images, evaluates, writes the leaderboard
# make test    sets everything up, runs the fast tests
# make integration   the tests that start processes, train or open a browser; make slow those of minutes each
# make cluster-tests   the tests on a real SLURM (Debian: slurm-wlm munge; as root) and a real Ray
# make lint    ruff
# make types   mypy --strict
# make docs    the site, in build/site; fails where a link leads nowhere
# make mutants PACKAGE=data   tries careless changes of a package, and names those that no test notices
PYTHON ?= python3
VENV ?= .venv
RUNS ?= runs
JOBS ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready

.PHONY: demo test integration slow cluster-tests mutants lint types docs wheel clean

demo: $(INSTALLED)
	$(BIN)/ssl-bench benchmark -c demo --runs $(RUNS) --jobs $(JOBS)

# Bytecode is kept, so that each of hundreds of processes need not compile the package again.
test integration: export PYTHONDONTWRITEBYTECODE =
test integration: export OMP_NUM_THREADS = 1

test: $(READY)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal

integration: $(READY)
	$(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "integration and not slow"

slow: $(READY)
	$(BIN)/python -m pytest -q -m slow

mutants: $(READY)
	$(BIN)/python tests/support/mutants.py $(PACKAGE) $(if $(SAMPLE),--sample $(SAMPLE))

cluster-tests: $(READY)
	$(BIN)/pip install -q -c constraints.txt ".[ray]"
	$(BIN)/python -m pytest -q -m slow tests/benchmark/test_slurm.py tests/benchmark/test_ray.py tests/benchmark/test_grid.py

lint: $(READY)
	$(BIN)/pip install -q -c constraints.txt ".[lint]"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# mypy cannot follow the checkout's folders to their import names; it can follow an installed copy.
types: $(READY)
	$(BIN)/pip install -q -c constraints.txt ".[lint]"
	rm -rf build/typed && $(BIN)/pip install -q --no-deps --target build/typed .
	MYPYPATH=build/typed $(BIN)/mypy --config-file setup.cfg -p ssl_bench

# The reference is read from an installed copy, for the same reason.
docs: $(READY)
	$(BIN)/pip install -q -c constraints.txt ".[docs]"
	rm -rf build/typed && $(BIN)/pip install -q --no-deps --target build/typed .
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

wheel: $(READY)
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist *.egg-info

$(READY): $(INSTALLED)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	touch $(READY)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $(INSTALLED)
