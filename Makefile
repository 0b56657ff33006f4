# Everything a developer does with this repository. Each target sets up what it needs, from a bare clone:
# a virtual environment in .venv, made again when pyproject.toml changes. Another Python: make PYTHON=python3.13 test

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The first of these that is 3.11 or later makes the environment.
define bootstrap
@for python in $(PYTHON) python3.13 python3.12 python3.11; do \
	if $$python -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		exec $$python tools/bootstrap.py --environment $(VENV) $(1); \
	fi; \
done; \
echo "There is no Python 3.11 or later here." >&2; \
echo "Install one (Debian 12, Ubuntu 24.04: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
exit 1
endef

.PHONY: help demo test test-fast test-guest check check-format check-lint check-types check-layers format bench bench-nvme bench-lsi clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## boot Linux in QEMU with a device written in Python, and watch its driver use it
	@$(BIN)/vfio-user demo

test: test-fast test-guest ## every test: about 3 minutes, most of it in the guests

test-fast: $(VENV)/.installed-dev ## the tests that boot no guest
	@$(BIN)/pytest -m "not guest" $(PYTEST_ARGS)

test-guest: $(VENV)/.installed-dev ## the tests that boot Linux in QEMU
	@$(BIN)/pytest -m guest $(PYTEST_ARGS)

check: check-format check-lint check-types check-layers ## everything that is checked without running the code

check-format: $(VENV)/.installed-dev
	@$(BIN)/ruff format --check --quiet .

check-lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check --quiet .

check-types: $(VENV)/.installed-dev
	@$(BIN)/mypy

check-layers: $(VENV)/.installed-dev
	@$(BIN)/pytest -q tests/test_layering.py

format: $(VENV)/.installed-dev ## format the code, and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.installed-dev ## measure the message path, start-up and memory; BENCH_ARGS="--help" for choices
	@$(BIN)/python -m bench $(BENCH_ARGS)

bench-nvme: $(VENV)/.installed-dev ## measure the NVMe controller under a load generator, and under Linux next to QEMU's own; BENCH_ARGS="--profile" says where time goes
	@$(BIN)/python -m bench.nvme $(BENCH_ARGS)

bench-lsi: $(VENV)/.installed-dev ## measure the SCSI controller under Linux next to QEMU's own; BENCH_ARGS="--profile" says where time goes
	@$(BIN)/python -m bench.lsi $(BENCH_ARGS)

clean: ## remove everything that was made here (not the guest kit: that is in ~/.cache/vfio-user)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis bench/results
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The package alone is enough to run devices; a change of its code needs no new installation.
$(VENV)/.installed: pyproject.toml tools/bootstrap.py
	$(call bootstrap,)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml tools/bootstrap.py
	$(call bootstrap,--group dev)
	@touch $(VENV)/.installed $@
