# `make quickstart` and `make test` need only Python (3.10 or newer) and the package registries.
PYTHON ?= python3
VENV ?= .venv
# Installed first, and only if torch is missing: on Linux a plain `torch` includes gigabytes of CUDA libraries.
# For a CPU build from another index: make test TORCH="torch==2.13.0 --index-url URL"
TORCH ?= torch==2.13.0
TRANSFORMERS ?= transformers
WORKERS ?= auto
PYTEST_ARGS ?=
ARGS ?=

BIN := $(VENV)/bin

.PHONY: env quickstart zoo test host-table family-table recipe-table mutants peers quality style typecheck docs bench

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip show -q torch 2>/dev/null || $(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -m pip install "$(TRANSFORMERS)" -e ".[gguf,plot,ablate]"
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install "$(TRANSFORMERS)" -e ".[dev]"
	touch $@

env: $(VENV)/.installed-dev  ## install everything for the other targets

quickstart: $(VENV)/.installed  ## train a small ViT with and without a frozen LLM layer, compare, save, predict
	$(BIN)/python examples/quickstart.py $(ARGS)

zoo: $(VENV)/.installed-dev  ## train, evaluate, describe and pack the small checkpoints; ARGS="--only NAME" for one
	$(BIN)/python benchmarks/zoo.py --cards hub_cards $(ARGS)

test: $(VENV)/.installed-dev  ## the tests; PYTEST_ARGS=--run-slow for all of them
	$(BIN)/python tests/fetch.py
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

host-table: $(VENV)/.installed-dev  ## the table of hosts in docs/, from the tests that it counts
	$(BIN)/python tests/fetch.py
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal \
		-m host_table --run-slow --host-table=docs/use_your_own_host.md $(PYTEST_ARGS)

family-table: $(VENV)/.installed-dev  ## the table of language model families in docs/, from the tests that it counts
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 --dist worksteal \
		-m family_table --family-table=docs/language_models.md $(PYTEST_ARGS)

recipe-table: $(VENV)/.installed-dev  ## the page of all recipes, recipes/README.md, from their headers
	$(BIN)/python benchmarks/recipe_table.py

mutants: $(VENV)/.installed-dev  ## plant faults and run the test that must notice each; ARGS=words of their names
	OMP_NUM_THREADS=1 $(BIN)/python tests/plant_mutants.py $(ARGS)

peers: $(VENV)/.installed-dev  ## peft's own common tests on a model of this package; fetches them
	$(BIN)/python tests/fetch.py peers
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(WORKERS) --maxprocesses 8 tests/peers $(PYTEST_ARGS)

quality: $(VENV)/.installed-dev typecheck docs  ## linters, the type checker and the pages; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/lint_modeling.py

# mypy does not follow setup.py's package_dir, so it checks a copy that is laid out like the installed package.
typecheck: $(VENV)/.installed-dev
	rm -rf build/typecheck && mkdir -p build/typecheck
	cp -r hf_frozen_llm examples build/typecheck/ && cp -r modeling recipes hub_cards build/typecheck/hf_frozen_llm/
	cd build/typecheck && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p hf_frozen_llm
	cd build/typecheck && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache examples/*.py

# The pages keep the repository's layout, so that their links work there, too; setup.py's package_dir as for mypy.
docs: $(VENV)/.installed-dev  ## the site of README.md and docs/, with the reference, in build/docs/site; warnings are errors
	rm -rf build/docs && mkdir -p build/docs/package build/docs/pages/benchmarks
	cp -r hf_frozen_llm build/docs/package/ && cp -r modeling build/docs/package/hf_frozen_llm/
	cp -r docs recipes hub_cards README.md CHANGELOG.md CONTRIBUTING.md CITATION.cff LICENSE build/docs/pages/
	cp -r benchmarks/results build/docs/pages/benchmarks/
	rm -rf build/docs/pages/hub_cards/model_card_template.md build/docs/pages/hub_cards/*/notes.md
	sed -i.bak 's/^<details>/<details markdown>/' build/docs/pages/hub_cards/*/README.md
	rm build/docs/pages/hub_cards/*/README.md.bak
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

style: $(VENV)/.installed-dev  ## fix what the linters can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev  ## the measured claims; the block's take half an hour on two cores
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/loading.py
	$(BIN)/python benchmarks/hub_loading.py
	$(BIN)/python benchmarks/point_groups.py
	$(BIN)/python benchmarks/block.py --output benchmarks/results/block
