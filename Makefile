# `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
VENV  := .venv
BIN   := $(VENV)/bin
.DEFAULT_GOAL := help

# Debian packages beyond what a Python machine has; `slurm-dev/cluster` installs debootstrap itself.
PACKAGES := postgresql

.PHONY: help
help: ## List every target
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || python3 -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.PHONY: env
env: $(VENV)/.installed ## Make the Python environment (.venv)

.PHONY: demo
demo: env ## From nothing to stored models: cluster, images, broker, two pipelines
	demo/run

.PHONY: check
check: env ## Lint, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: system
system: # Debian packages that the tests use
	@missing=; for package in $(PACKAGES); do dpkg -s $$package >/dev/null 2>&1 || missing="$$missing $$package"; done; \
	command -v npm >/dev/null || missing="$$missing nodejs npm"; \
	if [ -n "$$missing" ]; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; fi
	@$(BIN)/python -m tests.prometheus # Prometheus is unpacked into ~/.cache, not installed

.PHONY: unit
unit: env ## The tests that need no cluster (seconds)
	$(BIN)/pytest tests/unit

.PHONY: test
test: env system ## Every test, the real cluster's included, two at a time (about 30 min on two cores)
	$(BIN)/pytest -m 'not slow' -n 2 --no-loadscope-reorder --max-worker-restart 0

.PHONY: prove
prove: env system ## The long proofs; writes the dated report in docs/proof/
	$(BIN)/python -m prove

.PHONY: bench
bench: env ## The ratios of benchmarks/, measured in one run
	$(BIN)/python -m benchmarks

.PHONY: constraints
constraints: ## Write down the versions of everything installed, dependencies of dependencies included
	$(BIN)/pip freeze --exclude-editable > constraints.txt

.PHONY: docs
docs: env ## Make the generated pages anew (settings, commands, OpenAPI)
	$(BIN)/python -m broker.settings_docs
	$(BIN)/python -m broker.cli.docs
	$(BIN)/python -m broker.api.openapi > docs/openapi.json

.PHONY: clean
clean: ## End the development clusters and remove what was built here
	for name in $$(ls $${SLURM_DEV_HOME:-$$HOME/.local/state/slurm-dev} 2>/dev/null); do slurm-dev/cluster down --name $$name || true; done
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
