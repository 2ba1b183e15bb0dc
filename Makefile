# Two commands: `make demo` and `make test`. Each makes its own .venv and installs what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help setup demo test lint format check bench clean
help:  ## Show this help
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

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

test: $(STAMP) lint  ## Check the code and run every test
	$(BIN)/python -m pytest -n 2 tests/unit tests/contract
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/integration tests/acceptance

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)  ## Print the measurements that README and docs quote
	$(BIN)/python -m benchmarks

clean:  ## Remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build dist
