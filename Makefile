# One door to everything. `make` prints the verbs.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV := .venv
PY := $(VENV)/bin/python
UV := $(VENV)/bin/uv
DATA ?= .reprise
PORT ?= 8080
PROTOS := $(shell find protos/reprise -name '*.proto' | sort)
EXT := $(shell find cpp_ext -name build -prune -o -type f \( -name '*.cc' -o -name '*.h' -o -name 'CMakeLists.txt' -o -name pyproject.toml \) -print)
CPP := $(shell find cpp_ext -name build -prune -o -type f \( -name '*.cc' -o -name '*.h' \) -print)
SITE = $(shell $(PY) -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
BUF := $(VENV)/bin/buf

.PHONY: help setup protos ext fmt check test test-ext bench up down demo clean baseline reference

help: ## Show the verbs
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: $(VENV)/.ready protos/gen/.ready ## Make .venv with everything, and the stubs

$(VENV)/.ready: pyproject.toml uv.lock $(EXT)
	test -x $(PY) || python3 -m venv $(VENV)
	test -x $(UV) || $(PY) -m pip install -q --disable-pip-version-check "uv>=0.13,<0.14"
	UV_PYTHON_DOWNLOADS=never $(UV) sync -q --frozen --reinstall-package reprise-executor
	touch $@

protos/gen/.ready: $(PROTOS) $(VENV)/.ready
	rm -rf protos/gen && mkdir -p protos/gen build
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(PY) -m grpc_tools.protoc -I protos -I $(SITE) \
		--python_out=protos/gen --grpc_python_out=protos/gen \
		--mypy_out=quiet:protos/gen --mypy_grpc_out=quiet:protos/gen $(PROTOS)
	touch $@

protos: ## Generate the stubs again
	rm -f protos/gen/.ready
	$(MAKE) protos/gen/.ready

ext: ## Build the native extension again
	$(UV) sync -q --frozen --reinstall-package reprise-executor

build/reprise.binpb: $(PROTOS) $(VENV)/.ready
	mkdir -p build
	@$(PY) -m grpc_tools.protoc -I protos -I $(SITE) --include_imports --include_source_info \
		--descriptor_set_out=$@ $(PROTOS)

baseline: build/reprise.binpb ## Take today's protos as the contract that later ones must not break
	$(PY) -m grpc_tools.protoc -I protos -I $(SITE) --include_imports \
		--descriptor_set_out=protos/baseline.binpb $(PROTOS)

fmt: setup ## Format all code
	$(VENV)/bin/ruff check -q --fix-only .
	$(VENV)/bin/ruff format -q .
	$(VENV)/bin/clang-format -i --style=file:cpp_ext/.clang-format $(CPP)

check: setup build/reprise.binpb ## Lint, types, layers and contracts; writes nothing
	$(VENV)/bin/ruff check -q .
	$(VENV)/bin/ruff format -q --check .
	@$(VENV)/bin/clang-format --dry-run --Werror --style=file:cpp_ext/.clang-format $(CPP)
	$(BUF) lint build/reprise.binpb
	$(BUF) breaking build/reprise.binpb --against protos/baseline.binpb
	$(VENV)/bin/lint-imports --no-logo
	$(VENV)/bin/mypy

test-ext: setup ## The C++ tests of the executor
	$(VENV)/bin/cmake -S cpp_ext -B build/cpp -DREPRISE_BUILD_TESTS=ON -DREPRISE_BUILD_EXTENSION=OFF
	$(VENV)/bin/cmake --build build/cpp -j 2
	$(VENV)/bin/ctest --test-dir build/cpp --output-on-failure

test: check test-ext ## Everything that proves the project (under 15 minutes on 2 cores)
	$(VENV)/bin/pytest tests/unit tests/integration tests/house -n 2
	$(VENV)/bin/pytest tests/e2e

bench: setup ## Measure the mesh against the bare cog server, in one run
	$(PY) -m bench.bench_mesh

up: setup ## Start the mesh in the background (DATA=.reprise PORT=8080)
	$(VENV)/bin/reprise up --data $(DATA) --port $(PORT) --detach

down: ## Stop the mesh
	$(VENV)/bin/reprise down --data $(DATA)

demo: setup ## Mesh up, three real models pushed and run; leaves the mesh up
	$(PY) examples/prepare.py
	$(VENV)/bin/reprise up --data $(DATA) --port $(PORT) --detach
	$(PY) examples/demo.py --data $(DATA)

clean: ## Remove what was built (not the data folder)
	rm -rf $(VENV) build protos/gen cpp_ext/build

reference: setup ## Write docs/reference.md from the code
	$(PY) -m tests.house.reference
