# Everything runs in .venv, made by `make install` from a bare Python; `make` alone lists the targets.
# No recipe needs more than GNU make 3.81, the one that macOS carries.

PYTHON ?= python3
# Tests run in so many processes at once, a file in each: most of their time is spent in processes of their own.
TEST_PROCESSES ?= 2
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# Tests and demo run on what is fetched once, and ask no model hub.
export NO_ALBUMENTATIONS_UPDATE := 1
export HF_HUB_OFFLINE := 1
export HF_DATASETS_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

.DEFAULT_GOAL := help
.PHONY: help install demo demo-stamps demo-scenes test quick lint format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(STAMP) ## make .venv and install mmdata with all extras into it

# uv resolves and downloads in parallel: minutes less than pip for what torch brings.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "mmdata needs Python 3.11 or newer, and '$(PYTHON)' is not: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; \
		exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python --editable '.[dev]'
	@touch $@

demo: install ## fetch real media, build a dataset, query it, train on it
	@if command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null; then \
		$(MAKE) --no-print-directory demo-stamps; \
	else \
		echo "apt-get is not here, so the real media (Debian packages) cannot be fetched: building from generated scenes."; \
		$(MAKE) --no-print-directory demo-scenes; \
	fi

demo-stamps: install
	$(BIN)/mmdata fetch stamps whisper-base lite efficientnet-lite0 minilm
	$(BIN)/mmdata build pipelines/stamps.yaml
	$(BIN)/mmdata query builds/stamps "SELECT fate, count(*) AS samples FROM samples GROUP BY fate ORDER BY samples DESC"
	$(BIN)/mmdata train examples/train_stamps.yaml

demo-scenes: install ## the demo of a machine without apt
	$(BIN)/mmdata demo-data builds/scenes-media --count 2000 --seed 1
	$(BIN)/mmdata fetch lite
	$(BIN)/mmdata build pipelines/scenes.yaml
	$(BIN)/mmdata query builds/scenes "SELECT fate, count(*) AS samples FROM samples GROUP BY fate ORDER BY samples DESC"
	$(BIN)/mmdata train examples/train_scenes.yaml

test: install ## run the whole test suite (what needs an accelerator apart)
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) -m "not gpu" tests

quick: install ## run the tests that take seconds
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) -m "not gpu and not slow" tests

lint: install ## check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## run every benchmark in its short form
	@for script in benchmarks/*.py; do \
		echo "$$script --quick"; \
		$(BIN)/python "$$script" --quick || exit 1; \
	done

clean: ## remove .venv, builds and caches of tools (fetched media and weights stay)
	rm -rf $(VENV) builds dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find mmdata tests benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
