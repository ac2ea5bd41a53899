# Each target makes the virtual environment it needs (see .ci/venv). PYTHON=... chooses the
# interpreter, VENV=... the folder, ARGS=... adds arguments to the command.

VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Processes that share the tests; those of one file, or one case of the contract, stay together.
WORKERS ?= 2
export PYTHON

.PHONY: help demo test configs lint notebooks docs bench venv-core venv-dev venv-notebooks venv-docs clean

help:
	@echo "make demo       SchNet with and without Ewald on packaged data: table and picture"
	@echo "make test       the test suite"
	@echo "make configs    every shipped config for two steps"
	@echo "make lint       ruff: rules and formatting"
	@echo "make notebooks  execute every notebook"
	@echo "make docs       the documentation, into site/; warnings are errors"
	@echo "make bench      measure speed and memory"

venv-core:
	@bash .ci/venv $(VENV) ""

venv-dev:
	@bash .ci/venv $(VENV) dev,samples

venv-notebooks:
	@bash .ci/venv $(VENV) dev,samples,notebooks

venv-docs:
	@bash .ci/venv $(VENV) docs

demo: venv-core
	$(BIN)/python experiments/demo.py $(ARGS)

test: venv-dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

configs: venv-dev
	$(MAKE) test ARGS="-m configs $(ARGS)"

lint: venv-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

notebooks: venv-notebooks
	@if ls notebooks/*.ipynb >/dev/null 2>&1; then \
		$(BIN)/python -m pytest --nbmake notebooks $(ARGS); \
	else \
		echo "no notebooks to run: notebooks/ has none"; \
	fi

docs: venv-docs
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(BIN)/mkdocs build --strict --quiet $(ARGS)

bench: venv-core
	$(BIN)/ewald-jax benchmark kspace $(ARGS)

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
