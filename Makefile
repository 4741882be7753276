# make demo | test | check | format | build: each target creates .venv if it is missing.
.DEFAULT_GOAL := help
VENV := .venv
# Number of processes that run the tests, one test file at a time each (auto: one per core). Tests marked real_time run
# after them, alone: their controller answers in real time, and busy cores may delay it.
WORKERS ?= auto
PARALLEL := -n $(WORKERS) --maxprocesses 8 --dist loadfile --no-loadscope-reorder
BIN := $(VENV)/bin
READY := $(VENV)/ready

# Models are small, so larger thread pools of the math libraries only slow each other down.
export OMP_NUM_THREADS ?= 2
# Each process of the tests imports torch and lerobot: 6 s of CPU time from bytecode, 16 s if it compiles the sources.
unexport PYTHONDONTWRITEBYTECODE
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test check format build clean
help:
	@echo "make demo    the whole loop on the mock cell, offline, with a report at the end"
	@echo "make test    the tests"
	@echo "make check   ruff, pyright, the rooms' layers"
	@echo "make format  ruff's formatter and fixes"
	@echo "make build   wheel and sdist in dist/"

$(READY): pyproject.toml constraints.txt
	@sh scripts/make_venv.sh $(VENV)
	@touch $(READY)

demo: $(READY)
	@$(BIN)/srpo-robot demo

test: export OMP_NUM_THREADS := 1
test: $(READY)
	@$(BIN)/python -m pytest -m "not real_time" $(PARALLEL); others=$$?; \
	$(BIN)/python -m pytest -m real_time && exit $$others

check: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/pyright

format: $(READY)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

build: $(READY)
	@$(BIN)/python -m build --no-isolation

clean:
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
