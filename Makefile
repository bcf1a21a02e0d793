# make demo    install Whet into .venv and train the shipped base with GRPO
# make test    install Whet into .venv and run the unit suite
# make help    the rest

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
BIN := $(VENV)/bin
# --no-compile: compiling every file takes longer than the rest of the install, and few of them are ever imported
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# one thread a process: tiny models are slower on more, and JOBS processes fill the cores
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help install dev demo test slow faults check format style types imports clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Whet needs Python 3.11 or newer and $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# stamps: what is installed is installed again only when what it is made from has changed
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed ## the package alone, into .venv
dev: $(VENV)/.installed-dev ## the package with what tests and checks need

demo: $(VENV)/.installed ## train the shipped base with GRPO: runs/demo, or the next free runs/demo-N
	@out=runs/demo; n=2; while [ -e "$$out" ]; do out=runs/demo-$$n; n=$$((n + 1)); done; \
		echo "whet run grpo --out $$out"; $(BIN)/whet run grpo --out "$$out"

test: $(VENV)/.installed-dev ## the unit suite; JOBS=4 for more processes, ARGS=tests/tasks for a part
	$(PYTEST) $(ARGS)

slow: $(VENV)/.installed-dev ## the tests that take minutes
	$(PYTEST) -m slow $(ARGS)

faults: $(VENV)/.installed-dev ## kill, starve and mislead runs, and write docs/reliability.md; ARGS=--fresh anew
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults $(ARGS)

check: style types imports test ## format, lint, types, import layers, unit suite

style: $(VENV)/.installed-dev ## format and lint
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: $(VENV)/.installed-dev ## pyright
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(VENV)/.installed-dev ## the import layers of .importlinter
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev ## rewrite the files in the project's format
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean: ## remove .venv and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache build dist
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
