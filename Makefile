# Everything is made into ./.venv; nothing outside this folder is touched.
# On Debian: apt-get install python3-venv python3-dev gcc make

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# What is compiled: engine/_fast, and every module of the engine that has a .pxd beside it
TYPED  := $(shell find engine -name '*.pxd' -not -path 'engine/_fast/*')
FAST   := $(wildcard engine/_fast/*.pyx engine/_fast/*.pxd) $(TYPED) $(wildcard $(TYPED:.pxd=.py))
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
# pip and the compiler are heard only when they fail: quiet(what to run)
quiet   = log=$$(mktemp) && { $(1) >"$$log" 2>&1 || { cat "$$log" >&2; rm -f "$$log"; exit 1; }; rm -f "$$log"; }

# Further arguments for pytest, e.g. make test ARGS="tests/smtp -x"
ARGS   ?=
# Processes that run the tests; 0: the one that is called, as a debugger needs it
JOBS   ?= 2
# The policy for `make run`; none: the shipped default
POLICY ?=

.DEFAULT_GOAL := help
.PHONY: help demo run test test-pure test-slow test-asan test-wheel lint format build bench bench-micro clean

help:
	@echo "make demo              set up, then watch 1,000 messages go through"
	@echo "make run POLICY=my.py  run the relay (no POLICY: the shipped default)"
	@echo "make test              set up, then run the tests (ARGS=... for pytest; in JOBS=2 processes)"
	@echo "make test-pure         the byte-handling rooms on the plain Python twin of engine/_fast"
	@echo "make test-slow         the tests that take minutes"
	@echo "make test-asan         engine/_fast built with the address and undefined behaviour sanitizers"
	@echo "make test-wheel        what 'pip install .' installs, started from another directory"
	@echo "make lint              formatting, lint, types"
	@echo "make build             set up and compile; wheel and sdist are made by 'pip wheel .'"
	@echo "make bench             Posthorn against Postfix and the load tools' ceiling (bench/setup first)"
	@echo "make bench-micro       engine/_fast against its twin, into bench/results"
	@echo "make clean             remove what make and the tests made, and var/demo; other mail in var/ stays"

demo: $(VENV)/.made-run
	@$(BIN)/posthorn demo

run: $(VENV)/.made-run
	@$(BIN)/posthorn run $(if $(POLICY),"$(POLICY)")

test: $(VENV)/.made-dev
	@$(BIN)/python -m pytest -n $(JOBS) $(ARGS)

test-pure: $(VENV)/.made-dev
	@POSTHORN_PURE=1 $(BIN)/python -m pytest -n $(JOBS) tests/fast tests/smtp tests/mail tests/spool tests/queues tests/ingress tests/egress $(ARGS)

test-slow: $(VENV)/.made-dev
	@$(BIN)/python -m pytest -m slow -n $(JOBS) $(ARGS)

SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined
test-asan: $(VENV)/.made-dev
	@rm -rf build/asan
	@POSTHORN_CFLAGS="-O1 -g -fno-omit-frame-pointer $(SANITIZE)" POSTHORN_LDFLAGS="$(SANITIZE)" \
	  $(BIN)/python setup.py -q build --build-base build/asan/temp --build-lib build/asan/lib
	@LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	  $(BIN)/python -m pytest -o pythonpath="build/asan/lib ." tests/fast \
	  --deselect tests/fast/test_work.py $(ARGS)

# The checkout must not help: the wheel gets an environment of its own and is started elsewhere.
WHEEL := build/wheel
test-wheel: $(VENV)/.made-run
	@rm -rf $(WHEEL) && mkdir -p $(WHEEL)
	@$(PIP) wheel --no-build-isolation --no-deps --wheel-dir $(WHEEL) .
	@$(PYTHON) -m venv $(WHEEL)/venv
	@$(WHEEL)/venv/bin/python -m pip --disable-pip-version-check --quiet install $(WHEEL)/posthorn-*.whl
	@cd $(WHEEL) && venv/bin/python -c 'import engine._fast as f; assert f.ACTIVE == "compiled", f.ACTIVE'
	@cd $(WHEEL) && venv/bin/posthorn check && venv/bin/posthorn demo --messages 100

lint: $(VENV)/.made-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint engine/_fast
	$(BIN)/mypy

format: $(VENV)/.made-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

build: $(VENV)/.made-run

bench: $(VENV)/.made-run
	$(BIN)/python -m bench.flow $(ARGS)

bench-micro: $(VENV)/.made-run
	$(BIN)/python -m bench.micro

clean:
	rm -rf $(VENV) build dist *.egg-info var/demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find engine -name '*.so' -delete
	rm -f engine/_fast/*.c
	find bench engine policy tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. Each stamp is made once and again when what it depends on is newer.

$(VENV)/.made-venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Posthorn needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." \
	         "Try: make PYTHON=python3.11" >&2; exit 1; }
	@echo "== making $(VENV)"
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments. On Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(call quiet,$(PYTHON) -m venv $(VENV))
	@$(call quiet,$(PIP) install --upgrade "pip>=25.1")
	@touch $@

# The editable install compiles engine/_fast in place; a failure to compile stops here, with the compiler's words.
# "compat": the directory is put on the import path, where type checkers and editors find `policy`.
$(VENV)/.made-run: $(VENV)/.made-venv pyproject.toml setup.py Makefile engine/__init__.py $(FAST)
	@command -v $${CC:-gcc} >/dev/null || \
	  { echo "There is no C compiler ($${CC:-gcc}). On Debian: apt-get install gcc" >&2; exit 1; }
	@$(BIN)/python -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || \
	  { echo "Python.h of $$($(BIN)/python --version) is missing. On Debian: apt-get install python3-dev" >&2; exit 1; }
	@echo "== installing Posthorn and what it needs, compiling engine"
	@$(call quiet,$(PIP) install --group build)
	@$(call quiet,$(PIP) install --no-build-isolation --config-settings editable_mode=compat --editable .)
	@touch $@

$(VENV)/.made-dev: $(VENV)/.made-run pyproject.toml
	@echo "== installing what tests and lint need"
	@$(call quiet,$(PIP) install --group test --group lint)
	@touch $@
