# Everything below does its own set-up in .venv; PYTHON picks the interpreter that makes it.
PYTHON ?= python3
BIN := .venv/bin
OUT ?= runs/quickstart

.PHONY: help quickstart test lint format wheel clean

help:  ## This list.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/make \1\t\2/' | column -t -s "$$(printf '\t')"

# torch comes first and from constraints.txt alone: later releases bring gigabytes of CUDA packages.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: .venv/installed  ## The whole method on generated data, on a CPU, in minutes.
	$(BIN)/pixart run quickstart --output $(OUT)

lint: .venv/installed  ## ruff and mypy.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread in each of the processes: threads that wait for each other cost more than they bring.
test: lint  ## All tests.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile

format: .venv/installed  ## Rewrite the code in the project's format.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

wheel: .venv/installed  ## Build the wheel into dist/.
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:  ## Remove .venv and build products; runs/ is kept.
	rm -rf .venv dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache
