# `make demo` and `make test` are all a newcomer needs: each makes .venv, installs, and runs.

SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do $$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
TRITON := .venv/.triton
SMOLLM2 := .venv/.smollm2
WORKERS ?= 2

.PHONY: install demo test test-gpu aot campaigns real-model bench check
.DEFAULT_GOAL := install

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@"$(PYTHON)" -c '$(SUPPORTED)' 2>/dev/null || { echo "agent_memory needs Python 3.11 or newer; name one: make $(or $(MAKECMDGOALS),install) PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "installing into .venv (once; a few minutes)"
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: install
	OMP_NUM_THREADS=1 $(BIN)/agent-memory demo $(if $(MODEL),--model $(MODEL)) $(ARGS)

# Kernels are tested in Triton's interpreter and compiled ahead of time by two versions of it; it comes for Linux only.
$(TRITON): constraints.txt | $(STAMP)
	if [ "$$(uname -s)" = Linux ]; then \
		$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt triton && \
		$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --upgrade --target .venv/triton-3.6 triton==3.6.0; \
	fi
	@touch $@

# Real weights for tests: fetched and dequantised once, into the user's cache folder. Where they cannot be fetched, tests on them are skipped.
$(SMOLLM2): | $(STAMP)
	@echo "fetching the weights of smollm2 (once; 93 MB)"
	@if $(BIN)/agent-memory attach-check smollm2 >/dev/null; then touch $@; else echo "tests on smollm2 will be skipped"; fi

# Two processes, each with whole files of tests; WORKERS=0 runs them in one, as a debugger needs it.
test: install $(TRITON) $(SMOLLM2)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n $(WORKERS) --dist loadfile $(ARGS)

bench: install
	OMP_NUM_THREADS=1 $(BIN)/agent-memory bench --csv docs/benchmarks/figures.csv --plot docs/benchmarks/ratios.png $(ARGS)

aot: install $(TRITON)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m aot tests/kernels $(ARGS)

campaigns: install $(SMOLLM2)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m campaign $(ARGS)

# Measurements on real weights, for hours; DATA is a folder of public files (benchmarks/real_model.py says which).
real-model: install $(SMOLLM2)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/real_model.py --data "$(DATA)" $(ARGS)

test-gpu: install $(TRITON)
	@if $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; \
	then $(BIN)/python -m pytest -q -rs tests/kernels tests/gpu $(ARGS); \
	else echo "skipped: torch finds no CUDA device here, so no kernel can run for real (make test runs them in the interpreter)"; fi

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/house
