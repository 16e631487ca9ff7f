# The commands of the project. `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Without a GPU, pip is held to a CPU build of torch.
CONSTRAINTS := $(if $(shell command -v nvidia-smi),,-c constraints-cpu.txt)
DEMO := runs/demo

.PHONY: help install demo test test-slow test-gpu check bench bench-gpu clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## make .venv and install the project with what its tests need

$(VENV)/.installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(CONSTRAINTS) -e '.[dev]'
	touch $@

demo: install ## prepare the bundled text, train UltraMem and its rivals, compare them, write a few lines
	$(BIN)/ultramem prepare examples/text/state_of_the_union.jsonl.xz --out data/demo --vocab-size 4096 --validation-fraction 0.05
	$(BIN)/ultramem compare cpu-dense cpu-moe cpu-pkm cpu-ultramem --data data/demo --out $(DEMO)
	$(BIN)/ultramem generate $(DEMO)/cpu-ultramem-seed0 --prompt "My fellow citizens," --max-new-tokens 60 --seed 0
	@echo "The report: $(DEMO)/report.html"

test: install ## run the tests (CPU), but for the slow ones
	$(BIN)/python -m pytest -m "not gpu and not slow" -n auto --dist loadfile

test-slow: install ## run the slow tests (CPU): many processes, kills, compilation
	$(BIN)/python -m pytest -m "slow and not gpu" -n auto --dist loadfile

test-gpu: install ## run the tests that need a GPU
	$(BIN)/python -m pytest -m gpu

check: install ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: install ## measure the reference operations and the demo's recipes on this CPU
	$(BIN)/python -m benchmarks.cpu
	$(BIN)/python -m benchmarks.cpu_training

bench-gpu: install ## measure the kernels on this GPU
	$(BIN)/python -m benchmarks.ops.retrieval
	$(BIN)/python -m benchmarks.ops.lookup
	$(BIN)/python -m benchmarks.ops.gather_dot
	$(BIN)/python -m benchmarks.ops.causal_conv
	$(BIN)/python -m benchmarks.memory_layer
	$(BIN)/python -m benchmarks.decode
	$(BIN)/python -m benchmarks.training
	$(BIN)/python -m benchmarks.training_profile

clean: ## remove what the commands made, but no run and no data
	rm -rf $(VENV) build dist *.egg-info
