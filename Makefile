# Two commands for users: `make demo` and `make test`; CONTRIBUTING.md has the others. Each makes its own .venv and installs what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BEGAN  := $(VENV)/.test-began
TOOK   := $(VENV)/.test-seconds
SEED   ?= $(shell date +%s)
# Longest files first (see tests/conftest.py). Tests of stacks often wait for messages: three at a time keep two cores busy.
PYTEST := $(BIN)/python -m pytest --no-loadscope-reorder
UNIT   := -n 2 tests/unit tests/contract
STACKS := -n 3 tests/integration tests/acceptance

# Where this is set (many container images do), every process would compile all modules again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo test suites warm unit test-long test-load cases scoreboard hooks figures lint format bench clean
help:  ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Vantage needs Python 3.11 or newer; this is %s. Name another with: make PYTHON=python3.12 ..." % sys.version.split()[0])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . --group dev --group demo
	@$(BIN)/python -m workers.doctor --repair-opencv
	@touch $@

setup: $(STAMP)  ## Make .venv and install everything

demo: $(STAMP)  ## Index sample photographs, search them, show the answers (PHOTOS=dir QUERY=file for your own)
	@$(BIN)/python -m demo $(if $(PHOTOS),--photos "$(PHOTOS)") $(if $(QUERY),--query "$(QUERY)")

test: $(STAMP)  ## Check the code and run every test, with a small fixed sample of what is heavy
	@date +%s > $(BEGAN)
	@$(MAKE) --no-print-directory -j2 lint warm
	@$(MAKE) --no-print-directory suites
	@echo $$(( $$(date +%s) - $$(cat $(BEGAN)) )) > $(TOOK)
	@echo "make test took $$(cat $(TOOK)) s"

suites: $(STAMP)
	$(PYTEST) $(UNIT)
	$(PYTEST) $(STACKS)

# Compiled once, before two processes would each compile the same.
warm: $(STAMP)
	@$(BIN)/python -m workers.doctor --warm

unit: $(STAMP) warm  ## Run the tests that need neither Redis nor workers
	$(PYTEST) -n 2 tests/unit

test-long: $(STAMP) lint  ## Run every test in full: all kills, many examples by a printed seed (SEED=n), PostgreSQL
	@echo "seed $(SEED): repeat with make test-long SEED=$(SEED)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .[postgresql] --group long || echo "no PostgreSQL from a wheel here: its tests are skipped"
	TEST_LONG=1 $(PYTEST) --hypothesis-seed=$(SEED) $(UNIT)
	TEST_LONG=1 $(PYTEST) --hypothesis-seed=$(SEED) $(STACKS)

test-load: $(STAMP)  ## Run the suites beside a load of 8
	@set -e; pids=; trap 'kill $$pids' EXIT; \
	for i in 1 2 3 4 5 6 7 8; do while :; do :; done & pids="$$pids $$!"; done; \
	$(MAKE) --no-print-directory suites

cases: $(STAMP)  ## Run the cmd.sh of every folder below CASES and print PASS or FAIL
	@$(BIN)/python tests/run_cases.py "$(CASES)" $(BIN)/vantage

scoreboard: $(STAMP)  ## Measure one line of docs/scoreboard.md and append it (PHOTOS=dir)
	$(BIN)/python -m benchmarks.scoreboard $(if $(PHOTOS),--photos "$(PHOTOS)") --test-seconds $(TOOK)

hooks: $(STAMP)  ## Let every commit be checked as CI checks it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pre-commit
	$(BIN)/pre-commit install

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## Print the measurements that README and docs quote
	$(BIN)/python -m benchmarks

figures: $(STAMP)  ## Have README and docs show what their commands print now
	WRITE_FIGURES=1 $(BIN)/python -m pytest -q tests/acceptance/test_docs.py

clean:  ## Remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
