# Paths are relative throughout: make can't handle a target whose path contains spaces.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Another interpreter: make PYTHON=/path/to/python3.12 test
PYTHON ?=
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=

BIN := .venv/bin
READY := .venv/.installed
# pytest compiles test files in its own way, which takes most of the time until the first test: what
# one of its processes has compiled is for all, also where Python is told to write nothing.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

.PHONY: help
help: ## List what make can do
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' Makefile

.PHONY: demo
demo: $(READY) ## Flights in an embedded Postgres, streamed into DuckDB, seen in Dagster
	@$(BIN)/etl-dagster demo $(DEMO_ARGS)

.PHONY: test
test: $(READY) ## Run all tests, on every PostgreSQL found
	@# Else each process that tests start does it again, where Python may not write what it compiles.
	@$(BIN)/python -m compileall -q etl_dagster
	@$(PYTEST) -n auto --dist loadfile --no-loadscope-reorder $(TEST_ARGS)

# What pyproject.toml allows at least.
LOWEST_DUCKDB := 1.4
.PHONY: test-duckdb
test-duckdb: $(READY) ## Run the tests of the DuckDB file on the lowest version that is allowed
	@set -eu; if command -v uv >/dev/null; then \
		uv pip install --quiet --no-deps --python $(BIN)/python \
			--target .venv/duckdb-$(LOWEST_DUCKDB) "duckdb==$(LOWEST_DUCKDB).*"; \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
			--target .venv/duckdb-$(LOWEST_DUCKDB) "duckdb==$(LOWEST_DUCKDB).*"; \
	fi
	@PYTHONPATH=.venv/duckdb-$(LOWEST_DUCKDB) $(PYTEST) -q \
		-n auto --maxprocesses 2 --dist worksteal \
		tests/integration/test_duckdb_upkeep.py tests/integration/test_duckdb_updates.py \
		tests/integration/test_duckdb_files.py $(TEST_ARGS)

# The newest that DuckLake's extension is there for, as in pyproject.toml.
LAKE_DUCKDB := 1.5.5
LAKE := .venv/ducklake-$(LAKE_DUCKDB)
LAKE_PACKAGES := $(foreach name,duckdb duckdb-extension-ducklake duckdb-extension-postgres-scanner \
	duckdb-extension-sqlite-scanner,"$(name)==$(LAKE_DUCKDB)")
.PHONY: test-ducklake
test-ducklake: $(READY) ## Run the tests of DuckLake, with the DuckDB that it is there for
	@set -eu; if command -v uv >/dev/null; then \
		uv pip install --quiet --no-deps --python $(BIN)/python --target $(LAKE) $(LAKE_PACKAGES); \
	else \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
			--target $(LAKE) $(LAKE_PACKAGES); \
	fi
	@PYTHONPATH=$(LAKE) $(PYTEST) -q -n auto --maxprocesses 4 --dist worksteal \
		tests/ducklake $(TEST_ARGS)

# The lowest versions of everything that pyproject.toml promises, with the lowest Python.
LOWEST := .venv/lowest
.PHONY: test-lowest
test-lowest: $(READY) ## Run the tests that need no server on the lowest versions that are allowed
	@$(BIN)/uv venv --quiet --clear --python 3.11 $(LOWEST)
	@$(BIN)/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct -e ".[dev]"
	@# What old versions warn of is not ours to cure.
	@$(LOWEST)/bin/python -m pytest -q -W default -n auto tests/unit tests/integration/test_embedding.py $(TEST_ARGS)

# Each Python that is promised, where it is found. (Where pyenv has it, but not as the one in use, uv
# finds pyenv's shim only, which fails.)
.PHONY: test-all
test-all: $(READY) ## Run the tests that need no server on every Python from 3.11 to 3.14 that is found
	@set -eu; for version in 3.11 3.12 3.13 3.14; do \
		python=$$($(BIN)/uv python find --no-python-downloads "$$version" 2>/dev/null \
			|| ls "$${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version".*/bin/python 2>/dev/null \
			| tail -n 1); \
		if [ -z "$$python" ]; then echo "Python $$version: not found, not tested"; continue; fi; \
		echo "Python $$version"; \
		$(BIN)/uv venv --quiet --clear --python "$$python" ".venv/py$$version"; \
		$(BIN)/uv pip install --quiet --python ".venv/py$$version/bin/python" -e ".[dev]"; \
		".venv/py$$version/bin/python" -m pytest -q -n auto tests/unit \
			tests/integration/test_embedding.py $(TEST_ARGS); \
	done

SEED ?=
MINUTES ?= 3
DESTINATION ?= duckdb
.PHONY: chaos
chaos: $(READY) ## Break everything at random and compare: SEED= MINUTES= DESTINATION= (duckdb, postgres, fan-out)
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --minutes $(MINUTES) --destination $(DESTINATION)

.PHONY: bench
bench: $(READY) ## Measure, and write benchmarks/latest.json
	@$(BIN)/python -m benchmarks.run $(BENCH_ARGS)

COVERED ?= tests/unit
.PHONY: coverage
coverage: $(READY) ## Measure which branches the tests take: COVERED=tests/unit, or other tests
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check pytest-cov
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile --cov=etl_dagster --cov-branch \
		--cov-report=term:skip-covered --cov-report=html:build/coverage $(COVERED) $(TEST_ARGS)
	@echo "Open build/coverage/index.html"

.PHONY: docs
docs: $(READY) ## Build the documentation into build/docs
	@$(BIN)/python docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open build/docs/index.html; with the search: $(BIN)/python -m http.server -d build/docs"

.PHONY: compile
compile: $(READY) ## Compile the package and its tests, so that not each process does it
	@$(BIN)/python -m compileall -q etl_dagster
	@# What can't be collected is for `make test` to say.
	@$(PYTEST) -q --collect-only >/dev/null || true

.PHONY: pictures
pictures: $(READY) ## Make the pictures of the documentation, from the demo, with Chromium
	@ETL_TEST_PICTURES=docs/images $(BIN)/python -m pytest -q tests/acceptance/test_demo.py

.PHONY: recording
recording: $(READY) ## Record a terminal for README, as an SVG that plays by itself
	@$(BIN)/python docs/recording.py docs/images/terminal.svg

.PHONY: bench-meltano
bench-meltano: $(READY) ## Measure the Meltano state backend beside Meltano's own
	@$(BIN)/python -m benchmarks.meltano_state

.PHONY: lint
lint: $(READY) ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tests/typed
	$(BIN)/python -m tests.support.plain_english

.PHONY: clean
clean: ## Remove the environment, the demo's data and all caches
	@if kill -0 "$$(head -n 1 .demo/postgres/data/postmaster.pid 2>/dev/null)" 2>/dev/null; then \
		echo "The demo is running: stop it first (Ctrl-C in its terminal)." >&2; exit 1; fi
	rm -rf .venv .demo build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf .tmp_dagster_home_* docs/generated docs/diagrams/states.svg
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A python that is found isn't always one that runs (pyenv leaves names that only print an error).
# pip would compile on one processor only. What can't be compiled is nothing that is imported.
$(READY): pyproject.toml
	@set -eu; \
	if [ ! -x $(BIN)/python ]; then \
		found=; need='import sys; sys.exit(sys.version_info < (3, 11))'; \
		uv=$$(command -v uv || true); \
		[ -n "$$uv" ] || need="import venv, ensurepip; $$need"; \
		for name in "$(PYTHON)" python3.13 python3.12 python3.11 python3 python python3.14; do \
			[ -n "$$name" ] || continue; \
			if "$$name" -c "$$need" >/dev/null 2>&1; then found=$$name; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "No Python 3.11 or later with its venv module was found." >&2; \
			echo "Install one (Debian: apt install python3 python3-venv)," >&2; \
			echo "or name it: make PYTHON=/path/to/python3.12 ..." >&2; \
			exit 2; \
		fi; \
		echo "Making a virtual environment in .venv with $$found"; \
		rm -rf .venv; \
		if [ -n "$$uv" ]; then uv venv --quiet --python "$$found" .venv; \
		else "$$found" -m venv .venv; fi; \
	fi; \
	echo "Installing the package and its dependencies (a minute or two)"; \
	if command -v uv >/dev/null; then \
		uv pip install --quiet --compile-bytecode --python $(BIN)/python -e ".[dev]"; \
	else \
		$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --no-compile \
			-e ".[dev]"; \
		$(BIN)/python -m compileall -qq -j 0 .venv/lib || true; \
	fi; \
	touch $@
