# Everything starts from `make demo` and `make test`. Both build .venv first (three minutes, once).
#
# Variables:
#   PYTHON       the interpreter that .venv is made with; by default python3.11, or python3 if that is at least 3.11
#   TORCH_INDEX  an extra package index that holds torch's CPU build. Where the ordinary index has it already,
#                an index that cannot be reached does no harm; `make TORCH_INDEX=` leaves it out.
#   JOBS         test processes side by side; each starts a Ray of its own and takes up to 6 GiB. 0 is no process but
#                make's own, for a debugger.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

TESTS ?= tests/integration tests/unit
JOBS ?= 2

# Every process of a run imports the code anew: without bytecode files it would compile it anew, too.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/cpu.lock
GPU_LOCK := requirements/gpu.lock
# Beside the environment, for the test of what exports say to it.
OLD_LOCK := requirements/transformers4.lock
# Beside it as well, for the tests that read trackers' stores.
TRACKERS_LOCK := requirements/trackers.lock
# Other trainers that raft-ray is measured against, beside it as well.
PEERS_LOCK := benchmarks/peers/peers.lock
STAMP := $(VENV)/.installed
# A file's tests share fixtures, so they stay together; files begin in the order of the folders, which puts the short
# unit tests last, where they fill what the long files leave.
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --no-deps

.PHONY: help demo test test-all unit integration faults-test cluster-test stage1-test compare-test chaos lint types format env lock browser clean

help:
	@echo 'make demo         fine-tune the embedded 135M model on chemistry facts with RAFT and SFT, and write the report'
	@echo 'make test         unit and integration tests'
	@echo 'make test-all     all tests: these and the suites below'
	@echo 'make unit         unit tests only'
	@echo 'make faults-test  processes killed, interrupted or hung; actors that come and go; runs that go on'
	@echo 'make cluster-test jobs on clusters that are started as users do; nodes that join and die'
	@echo 'make stage1-test  stage 1 on engines, behind a server, killed and resumed'
	@echo 'make compare-test the comparison of all methods, other trainers, and our numbers against those of lm-eval'
	@echo 'make chaos        50 random kills in one long run; SEED=1 for others'
	@echo 'make lint types   ruff and mypy'
	@echo 'make format       let ruff rewrite the code'
	@echo 'make env          only build .venv'
	@echo 'make clean        remove .venv, caches and builds; runs/ stays'

demo: env
	$(BIN)/python -m raft_ray run demo $(ARGS)

test: env browser
	$(PYTEST) $(TESTS) $(ARGS)

test-all: env browser
	$(PYTEST) tests $(ARGS)

unit: env
	$(PYTEST) tests/unit $(ARGS)

integration: env browser
	$(PYTEST) tests/integration $(ARGS)

faults-test: env
	$(PYTEST) tests/faults $(ARGS)

cluster-test: env
	$(PYTEST) tests/cluster $(ARGS)

stage1-test: env
	$(PYTEST) tests/stage1 $(ARGS)

compare-test: env
	$(PYTEST) tests/comparison $(ARGS)

SEED ?= 0
chaos: env
	PYTHONPATH=tests $(BIN)/python benchmarks/chaos.py --seed $(SEED) $(ARGS)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: env
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

env: $(STAMP)

# torch goes first and by itself, so that only this one package is looked for in TORCH_INDEX.
$(STAMP): $(LOCK) $(OLD_LOCK) $(TRACKERS_LOCK) $(PEERS_LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'error: $(PYTHON) is older than Python 3.11; set it with make PYTHON=/path/to/python3.11' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo 'installing torch and the packages of $(LOCK): three to five minutes, 4 GB'
	$(PIP) --retries 1 $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) $$(grep '^torch==' $(LOCK))
	@$(BIN)/python -c 'from importlib.metadata import version; import sys; sys.exit("+cpu" not in version("torch"))' || \
		{ echo "error: pip found no CPU build of torch; give an index that has one with make TORCH_INDEX=..." >&2; exit 1; }
	$(PIP) -r $(LOCK)
	$(PIP) --upgrade --target $(VENV)/transformers4 -r $(OLD_LOCK)
	$(PIP) --upgrade --no-compile --target $(VENV)/trackers -r $(TRACKERS_LOCK)
	$(PIP) --upgrade --no-compile --target $(VENV)/peers -r $(PEERS_LOCK)
	$(PIP) --no-build-isolation -e .
	@touch $@

# Run in an environment that was resolved by hand (see CONTRIBUTING.md).
lock:
	$(BIN)/python requirements/lock.py cpu > $(LOCK).new && mv $(LOCK).new $(LOCK)
	$(PIP) uv
	PATH=$(CURDIR)/$(BIN):$$PATH python requirements/lock.py gpu > $(GPU_LOCK).new && mv $(GPU_LOCK).new $(GPU_LOCK)
	PATH=$(CURDIR)/$(BIN):$$PATH python requirements/lock.py trackers > $(TRACKERS_LOCK).new && \
		mv $(TRACKERS_LOCK).new $(TRACKERS_LOCK)

# The report's test opens it in a real browser.
browser:
	@if command -v chromedriver >/dev/null && command -v chromium >/dev/null; then :; \
	elif command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ]; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null; \
	else \
		echo 'error: the report is tested in a browser: install chromium and chromium-driver (chromedriver)' >&2; exit 1; \
	fi

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find raft_ray actors tests -name __pycache__ -type d -prune -exec rm -rf {} +
