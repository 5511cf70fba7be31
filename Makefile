# One environment, from the pinned constraints.txt. `make` alone lists the targets.

PYTHON ?= python3
VENV ?= .venv
# Tests run in so many processes, each with servers of its own; they wait as much as they compute.
JOBS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo up test check bench

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv with everything in it

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## Three agents, 60 prompts, a real model: see them answered
	$(BIN)/bitinglip demo

up: setup ## The whole system on this machine, until Ctrl-C
	$(BIN)/bitinglip up

test: setup ## Every test, against real servers
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

check: setup ## Style, types, layers, no torch at entry points, migrations equal to the tables
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q tests/test_entry_points.py tests/store/test_migrations.py

bench: setup ## The benchmarks; their JSON goes to benchmarks/results
	$(BIN)/python benchmarks/queue.py --json > benchmarks/results/queue.json
	$(BIN)/python benchmarks/engine.py --json > benchmarks/results/engine.json
	$(BIN)/python benchmarks/images.py --json > benchmarks/results/images.json
	$(BIN)/python benchmarks/download.py --json > benchmarks/results/download.json
	$(BIN)/python benchmarks/cancel.py --json > benchmarks/results/cancel.json
	$(BIN)/python benchmarks/dispatch.py --json > benchmarks/results/dispatch.json
	$(BIN)/python benchmarks/fairness.py --json > benchmarks/results/fairness.json
	$(BIN)/python benchmarks/simulate.py --suite --json > benchmarks/results/simulate.json
	$(BIN)/bitinglip chaos --json --rounds 3 > benchmarks/results/chaos.json
