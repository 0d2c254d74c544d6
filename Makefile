# Two commands do everything on a fresh machine with Python 3.11: `make demo` and `make test`.
# Both bring what they need into .venv, from the lock alone, and are quick afterwards.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
WARM := $(VENV)/warm
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=
FUZZ_ARGS ?=
CHAOS_ARGS ?=
OVERLOAD_ARGS ?=
SOAK_ARGS ?=
# The labelled transactions, where they lie beside the checkout.
ifneq ($(wildcard ../shared/data/ethereum),)
export FALCONET_DATA ?= $(abspath ../shared/data/ethereum)
endif
UV_VERSION := 0.13.9
LOCK_PART := --constraint requirements.lock --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links --no-header --no-annotate --quiet

.PHONY: help demo demo-chain test lint bench bench-models docs dashboards lock image wheel tools clean fuzz chaos overload soak

help: ## Show the commands.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS=$$'\t' read -r name text; do printf 'make %-12s %s\n' "$$name" "$$text"; done

demo: $(WARM) ## See simulated traffic with fraud go through Kafka, features and the model.
	@$(BIN)/falconet demo $(DEMO_ARGS)

demo-chain: $(WARM) tools ## See signed transactions go from a local node to scores, with a reorganisation in the middle.
	@PATH="$$($(BIN)/python -m tests.servers anvil-folder):$$PATH" $(BIN)/falconet demo --chain $(DEMO_ARGS)

test: $(WARM) tools ## Run all tests, on Apache Kafka where a broker is meant.
	@$(BIN)/python -m pytest $(TEST_ARGS)

fuzz: $(WARM) ## Run 2 million spoilt messages through codec and pipeline, half of them guided by coverage.
	@$(BIN)/python -c 'import atheris' 2> /dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement tests/fuzz/requirements.lock
	@$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

chaos: $(WARM) tools ## Kill, freeze, cut and starve service and broker for half an hour, and write docs/chaos.json.
	@$(BIN)/python -m tests.chaos --json docs/chaos.json $(CHAOS_ARGS)
	@$(BIN)/python -m docs.generate

overload: $(WARM) tools ## Offer twice the capacity for ten minutes, and other loads, and write docs/overload.json.
	@$(BIN)/python -m tests.bench.bench_overload --json docs/overload.json $(OVERLOAD_ARGS)
	@$(BIN)/python -m docs.generate

soak: $(WARM) tools ## Offer half the capacity for two hours and write docs/soak.json.
	@$(BIN)/python -m tests.bench.bench_soak --json docs/soak.json $(SOAK_ARGS)
	@$(BIN)/python -m docs.generate

lint: $(INSTALLED) ## Check format, lint and types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(WARM) tools ## Measure this machine and write docs/bench.json.
	@$(BIN)/python -m tests.bench --output docs/bench.json $(BENCH_ARGS)
	@$(BIN)/python -m docs.generate

# LightGBM's default threads are among what is measured, so nothing may limit them.
bench-models: $(WARM) ## Compare the small model with others on the same rows and write docs/bench-models.*.
	@env -u OMP_NUM_THREADS $(BIN)/python -m tests.bench.bench_models --output docs/bench-models.json $(BENCH_ARGS)

docs: $(INSTALLED) ## Write the generated tables in README.md and docs/.
	@$(BIN)/python -m docs.generate

dashboards: $(INSTALLED) ## Write the dashboards, the rules and Prometheus's configuration in deploy/.
	@$(BIN)/python -m deploy.generate

image: ## Run the steps of deploy/Dockerfile without Docker, in an empty tree; as root, two minutes.
	@$(BIN)/python -m tests.image

wheel: $(INSTALLED) ## Build the wheel into dist/.
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

# Hashes and versions only: no index, no machine's folder, so that any mirror serves it.
lock: ## Resolve the newest versions that pyproject.toml allows into requirements.lock.
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet uv==$(UV_VERSION)
	$(VENV)-lock/bin/uv pip compile pyproject.toml --extra confluent --extra demo --extra ingest --extra card --extra portable --extra sign \
		--group dev --group compare \
		--python-version 3.11 --upgrade --generate-hashes --no-emit-index-url --no-emit-find-links --no-header \
		--quiet --output-file requirements.lock
	@# The image's parts of it: what serves, and what builds the wheel.
	$(VENV)-lock/bin/uv pip compile pyproject.toml --extra confluent --extra ingest --extra sign $(LOCK_PART) --output-file deploy/image.lock
	$(VENV)-lock/bin/uv pip compile --group pyproject.toml:validate $(LOCK_PART) --output-file tests/validators/requirements.lock
	echo hatchling | $(VENV)-lock/bin/uv pip compile - $(LOCK_PART) --output-file deploy/build.lock

clean: ## Remove the environment and everything built.
	rm -rf $(VENV) $(VENV)-lock build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis deploy/kafka/target
	find features models service tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# --no-build-isolation: the build backend comes from the lock as well, so that nothing unpinned is fetched.
$(INSTALLED): requirements.lock pyproject.toml
	@echo 'Setting up $(VENV): half a minute, once.'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@# LightGBM's wheel expects OpenMP's runtime of the system.
	@missing=; ! command -v ldconfig > /dev/null || ldconfig -p | grep -q libgomp.so.1 || missing=" libgomp1"; \
	$(call bring,$$missing)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# Ahead of the first message, because compiling takes some seconds.
$(WARM): $(INSTALLED) $(wildcard features/*.py models/*.py)
	@echo 'Compiling the kernels: once per change of theirs.'
	@$(BIN)/falconet check --offline
	@touch $@

# Apache Kafka itself comes through Maven, and the chain's node through npm, when the first test asks for them.
tools:
	@missing=; \
	command -v java > /dev/null || missing="$$missing default-jre-headless"; \
	command -v mvn > /dev/null || missing="$$missing maven"; \
	command -v gcc > /dev/null || missing="$$missing gcc libc6-dev"; \
	command -v npm > /dev/null || missing="$$missing npm"; \
	command -v prometheus > /dev/null && command -v promtool > /dev/null || missing="$$missing prometheus"; \
	command -v systemd-analyze > /dev/null || missing="$$missing systemd"; \
	$(call bring,$$missing)
	@# Judges of what is deployed, which the demo needs not wait for.
	@$(BIN)/python -c 'import kubernetes_validate' 2> /dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement tests/validators/requirements.lock

# As root on Debian the missing packages are installed; elsewhere what needs them says so.
define bring
if [ -n "$(1)" ] && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	echo "Installing$(1)."; \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $(1); } \
		> /dev/null || echo "Not installed:$(1)."; \
fi
endef
