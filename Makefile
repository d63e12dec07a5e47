# Two commands for a new user: `make quickstart` and `make test`. `make help` lists the rest.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m flows.cli

# With PYTHONDONTWRITEBYTECODE every process compiles every import anew, about 7 s each.
unexport PYTHONDONTWRITEBYTECODE
# uv does not read pip's own setting of a local wheel folder; without one, it fetches CPU builds.
FIND_LINKS := $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
export UV_FIND_LINKS := $(FIND_LINKS)
TORCH_SOURCE := $(if $(FIND_LINKS),,--torch-backend cpu)
UV_INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --compile-bytecode
PYTEST := $(BIN)/python -m pytest
# In the order of tests/conftest.py, longest group first, not most tests first.
LONGEST_FIRST := -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: help install quickstart quickstart-people learn hh test test-fast test-slow check format ci clean chaos bench bench-exact bench-gpu bench-labeling bench-limits bench-ppo bench-store

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-18s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## build the environment from the pinned requirements

$(VENV)/.installed: requirements/cpu.txt requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "alignflow needs Python 3.11 or newer: make install PYTHON=/path/to/python3.11")'
	@echo "building the environment in $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	@$(UV_INSTALL) $(TORCH_SOURCE) -r requirements/cpu.txt -r requirements/dev.txt
	@$(UV_INSTALL) --editable .
	@$(BIN)/python -m flows.prefect_server prepare
	@touch $@

quickstart: install ## the whole pipeline on the embedded model and data, a quarter of an hour or so
	@$(RUN) run quickstart

quickstart-people: install ## the same on 6 prompts that you rank yourself in the browser
	@$(RUN) run quickstart_people --serve-labels

learn: install ## three seeds of the learning run, the quickstart with a larger evaluation
	@for seed in 0 1 2; do $(RUN) run learn --set run.name=learn-$$seed --set run.seed=$$seed || exit 1; done

test: install ## every test except the long ones, 20 minutes or so on two cores
	@$(PYTEST) -m "not slow" $(LONGEST_FIRST) --durations=20

test-fast: install ## the tests that start no engine, within a minute
	@$(PYTEST) -m "not engines and not slow" -n 2 --dist loadgroup -q

test-slow: install ## the long tests
	@$(PYTEST) -m slow $(LONGEST_FIRST) --durations=15

check: install ## format, lint and types, without changing anything
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet . && $(BIN)/mypy

format: install ## format and mend what can be mended
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

chaos: install ## a run whose processes are killed at random moments, against a whole one
	@$(BIN)/python tests/flows/chaos.py

bench-exact: install ## every method against its known optimum on tasks small enough to enumerate
	@OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.exact

bench: bench-exact bench-limits bench-ppo bench-store ## all benches, hours on two cores

bench-gpu: install ## training on one GPU, rows packed and padded
	@$(BIN)/python -m benchmarks.gpu

bench-limits: install ## training, rollouts and weight sync against what the machine can do
	@$(BIN)/python -m benchmarks.limits

bench-ppo: install ## our PPO step against TRL's, in turns; see --variant and --rounds
	@$(BIN)/python -m benchmarks.ppo

bench-store: install ## lineage of 1,000 artifacts and 100 reuse look-ups
	@$(BIN)/python -m benchmarks.store

bench-labeling: install ## the label service under load, kills and a million tasks, about an hour
	@$(BIN)/python -m benchmarks.labeling

ci: check test test-slow ## what .ci/run runs

clean: ## remove the environment and caches; runs and store stay
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache *.egg-info
