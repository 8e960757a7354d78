# `make demo` and `make test` do all the set-up on a fresh machine with Python 3.11 or newer.

PYTHON ?= python3
BIN := .venv/bin
ifeq ($(shell uname -s),Linux)
EXTRAS := cpu,dev
else
EXTRAS := dev
endif

.PHONY: demo test format clean

demo: .venv/ready
	$(BIN)/hubsae demo

test: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e ".[$(EXTRAS)]"
	touch .venv/ready

clean:
	rm -rf .venv build *.egg-info demo-saes
