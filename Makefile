# Every command of the project. `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
RUNS := $(VENV)/.runs

help: ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(RUNS): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Turnout needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Set PYTHON=python3.12, for example."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "Python's venv module is missing. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@echo "Installing into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[worker]'
	@touch $(RUNS)

$(READY): $(RUNS)
	@echo "Installing development tools …"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(READY)

install: $(READY) ## make the environment for development

run: $(RUNS) ## the main job: every line of examples/prompts.jsonl, on the available providers
	$(BIN)/turnout run examples/prompts.jsonl -o results.jsonl --anew

# Most tests wait for other processes, so four share two cores well. A file's tests stay together and share its stands.
test: $(READY) ## the tests
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

check: $(READY) ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: $(READY) ## kill workers and Redis, take providers down, and count what is lost (minutes)
	$(BIN)/python -m tests.chaos
	$(BIN)/python -m tests.chaos.deaths
	$(BIN)/python -m tests.chaos.deaths --lease 30 --times 20
	$(BIN)/python -m tests.chaos.faults
	$(BIN)/python -m tests.chaos.events
	$(BIN)/python -m tests.chaos.events --kills 5
	$(BIN)/python -m tests.chaos.poison

bench: $(READY) ## run every benchmark, one after the other (many minutes)
	$(BIN)/python -m tests.benchmarks

sbom: ## list the image's components, as CycloneDX JSON in sbom.json
	$(PYTHON) -m venv .sbom
	.sbom/bin/python -m pip install --quiet --disable-pip-version-check 'cyclonedx-bom>=7,<8'
	.sbom/bin/cyclonedx-py requirements --output-reproducible -o sbom.json compose/requirements.txt

clean: ## remove the environment and what runs left behind
	rm -rf $(VENV) .sbom sbom.json .turnout .mypy_cache .ruff_cache .pytest_cache .hypothesis

.PHONY: help install run test check chaos bench sbom clean
.DEFAULT_GOAL := help
