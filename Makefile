# The only entry: `make` alone prints what there is.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

BIN := .venv/bin
STAMP := .venv/.installed
PROJECTS := protos services/common services/ipam services/controller services/driver-agent clients/cni-plugin clients/python clients/cli
CODE := $(wildcard $(addsuffix /netweft_*,$(filter-out protos,$(PROJECTS))))
# Folders that hold no Python yet are an error to mypy.
TYPED := $(CODE) $(patsubst %/,%,$(sort $(dir $(wildcard tests/support/*.py examples/*.py))))
# Somebody who is not root gets a user namespace for tests that make network namespaces, where the kernel lets him.
INSIDE := $(shell [ "$$(id -u)" = 0 ] || { unshare -Urnm true 2>/dev/null && echo "unshare -Urnm --"; })
RUN_ARGS = $(if $(RUN_DIR),--run-dir $(RUN_DIR)) $(ARGS)

# An environment that was made for another folder (a clone that moved) would run that folder's code.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
.PHONY: $(STAMP)
endif

.PHONY: help
help: ## this text
	@echo "netweft: networks for containers, on one host or on thousands"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo; echo "  .venv is made at the first use; it needs Python >= 3.11 with venv, and the network once."

.PHONY: demo up down status
demo: $(STAMP) ## two hosts in namespaces, containers on both, who reaches whom; leaves nothing  [ARGS=--keep]
	@$(BIN)/netweft demo $(RUN_ARGS)

up: $(STAMP) ## start a stack of one host for the command line  [RUN_DIR=path] [ARGS=--host-network]
	@$(BIN)/netweft up $(RUN_ARGS)

down: $(STAMP) ## stop it and remove all of it  [RUN_DIR=path]
	@$(BIN)/netweft down $(RUN_ARGS)

status: $(STAMP) ## what runs of it, and how it is  [RUN_DIR=path]
	@$(BIN)/netweft status $(RUN_ARGS)

.PHONY: test test-runtimes bench
PYTEST = $(BIN)/python -m pytest -n $(or $(WORKERS),auto) --dist loadfile
test: $(STAMP) ## all tests but test-runtimes, or those of one path  [T=tests/unit] [ARGS="-k name"]
	@$(INSIDE) $(PYTEST) $(or $(T),--ignore=tests/runtimes) $(ARGS)

test-runtimes: $(STAMP) ## tests with Docker, Podman and containerd, where those are installed  [T=path] [ARGS=...]
	@$(if $(T),,$(BIN)/python -m tests.support.debian)
	@$(PYTEST) $(or $(T),tests/runtimes) $(ARGS)

bench: $(STAMP) ## time the hot paths beside what peers take; writes build/bench.json  [ONLY=attach,attach-batch]
	@mkdir -p build
	@$(INSIDE) $(BIN)/python -m tests.bench $(if $(ONLY),--only $(ONLY)) $(ARGS)

.PHONY: check lint types imports protos stubs-check
check: lint types imports protos stubs-check ## everything that needs no kernel: lint, types, layers, wire contract, stubs

lint: $(STAMP)
	@echo "» ruff"
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --diff .

types: $(STAMP)
	@echo "» mypy --strict"
	@$(BIN)/mypy --no-error-summary $(TYPED)

imports: $(STAMP)
	@echo "» import-linter"
	@$(BIN)/lint-imports --no-logo > build/imports.txt 2>&1 || { cat build/imports.txt; exit 1; }

protos: $(STAMP)
	@echo "» buf"
	@$(BIN)/buf lint protos
	@tag=$$(git describe --tags --abbrev=0 2>/dev/null || true); if [ -n "$$tag" ]; then \
	    $(BIN)/buf breaking protos --against ".git#tag=$$tag,subdir=protos"; fi

stubs-check: $(STAMP)
	@echo "» stubs"
	@rm -rf build/stubs && PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python protos/generate.py build/stubs
	@diff -r -x __pycache__ protos/python/netweft build/stubs/netweft \
	    || { echo "the committed stubs differ from the .proto files: run 'make stubs' and commit" >&2; exit 1; }

.PHONY: wheels compose-up compose-down compose-test
COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)
wheels: $(STAMP) ## what images install, in build/wheels: pinned packages for CPython 3.11, and ours
	@$(BIN)/python deploy/wheels.py build/wheels

compose-up: wheels ## build the images of docker-compose.yml and start them  [BASE=image with Python 3.11]
	@$(COMPOSE) build
	@$(COMPOSE) up -d

compose-down: ## stop what compose-up started, and remove all it made
	@$(COMPOSE) down --volumes --remove-orphans --timeout 5

compose-test: wheels ## attach across the hosts of docker-compose.yml, kill one of everything in turn; leaves nothing
	@NETWEFT_COMPOSE=1 $(BIN)/python -m pytest tests/runtimes/test_compose.py $(ARGS)

.PHONY: stubs format lock clean
stubs: $(STAMP) ## write protos/python again from the .proto files
	@PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python protos/generate.py

format: $(STAMP) ## let ruff format and mend what it can
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format .

lock: ## write requirements.lock again from requirements.in; needs uv
	@uv=$$(command -v uv || echo build/uv/bin/uv); \
	if [ ! -x "$$uv" ]; then python3 -m venv build/uv && build/uv/bin/pip install --quiet uv; fi; \
	"$$uv" pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --no-header --universal \
	    --python-version 3.11 --upgrade requirements.in --output-file requirements.lock

clean: ## remove .venv, build and caches
	@rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): requirements.lock $(addsuffix /pyproject.toml,$(PROJECTS)) .ci/venv
	@mkdir -p build
	@.ci/venv $(PROJECTS)
