# Everything a developer types. Needs Python >= 3.11 with venv and headers, and a C compiler; the rest goes into .venv.

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec

PYTHON ?= python3
CC ?= cc
BIN := .venv/bin
SOURCES := setup.py $(shell find csrc protos -name '*.[ch]' -not -path 'csrc/kvstore/*' -o -name '*.p[yx][xd]' -o -name '*.proto')
SANITIZED := build/sanitize
PACKAGE := build/package
BENCH ?= $(shell grep -l '^def cases' bench/*.py | xargs -n1 basename -s .py | paste -sd,)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Leaks are not looked for: the interpreter keeps memory to its end, and it is in the trace of everything of ours.
# The C++ runtime has to be there when the sanitizer looks for what it wraps: other people's modules throw.
SANITIZERS = LD_PRELOAD="$$($(CC) -print-file-name=libasan.so) $$($(CC) -print-file-name=libstdc++.so.6)" PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1

# Two at a time, each with a half of the files: one ends with those of the other. WORKERS=0 is one process.
WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

requirements = $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))$(1), sep="\n")'

.PHONY: help dev demo test lint sanitize package bench clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18

dev: .venv/.dev .venv/.built ## .venv with everything that tests and benchmarks need

demo: .venv/.built ## a chat workload against a small store
	@$(BIN)/kvstore demo $(ARGS)

test: dev ## all tests (ARGS="-k name" picks some)
	@$(PYTEST) $(ARGS)

lint: dev ## style and types
	@$(BIN)/ruff check -q .
	@$(BIN)/ruff format -q --check .
	@$(BIN)/mypy
	@PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint csrc

sanitize: dev ## unit, property and crash tests with AddressSanitizer and UBSan in the core
	@mkdir -p $(SANITIZED) && find $(SANITIZED) -name '*.py' -delete
	@KVSTORE_SANITIZE=1 $(BIN)/python setup.py -q build --build-base $(SANITIZED) --build-lib $(SANITIZED)/lib \
		> $(SANITIZED)/build.log 2>&1 || (cat $(SANITIZED)/build.log; exit 1)
	@$(SANITIZERS) KVSTORE_KILLS=30 KVSTORE_ATTACH_S=6 PYTHONSAFEPATH=1 PYTHONPATH=$(SANITIZED)/lib:. \
		$(PYTEST) --capture=sys -p no:cacheprovider tests/unit tests/property tests/crash $(ARGS)

package: dev ## sdist, a wheel from it, and a round trip with the wheel alone
	@rm -rf $(PACKAGE)
	@mkdir -p $(PACKAGE)
	@($(BIN)/python -m build --no-isolation --sdist --outdir $(PACKAGE) && \
		$(BIN)/pip -v wheel --no-deps --wheel-dir $(PACKAGE) $(PACKAGE)/*.tar.gz) \
		> $(PACKAGE)/build.log 2>&1 || (cat $(PACKAGE)/build.log; exit 1)
	@$(BIN)/python tests/package/contents.py $(PACKAGE)
	@$(BIN)/python -m venv $(PACKAGE)/venv
	@$(PACKAGE)/venv/bin/pip -q install $(PACKAGE)/*.whl
	@cd $(PACKAGE) && venv/bin/python -I ../../tests/package/round_trip.py

bench: dev ## figures beside their ceilings (BENCH=name,name picks some)
	@$(BIN)/python -m bench $(BENCH) $(ARGS)

clean: ## remove what was built, .venv included
	@rm -rf .venv build dist kvstore.egg-info
	@find kvstore csrc/kvstore \( -name '*.so' -o -name "*_pb2*" -o -path "csrc/kvstore/*.c" \) -delete

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Python %d.%d: kvstore needs 3.11 or later" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@$(PYTHON) -m venv .venv

# Without an isolated environment the compiled files stay valid for the next build; it needs the build's own tools.
.venv/.run: pyproject.toml | .venv/bin/python
	@$(call requirements,["build-system"]["requires"]) | $(BIN)/pip -q install -r /dev/stdin
	@$(BIN)/pip -q install --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/.run
	@$(call requirements,["project"]["optional-dependencies"]["dev"]) | $(BIN)/pip -q install -r /dev/stdin
	@touch $@

.venv/.built: .venv/.run $(SOURCES)
	@$(BIN)/python setup.py -q build_ext --inplace > .venv/build.log 2>&1 || (cat .venv/build.log; exit 1)
	@touch $@
