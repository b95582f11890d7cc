# The two commands of the README: `make demo` and `make test`. Both set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= smollm2-135m
DEMO_STAGES ?= 2

.PHONY: help demo test setup model stubs lint types imports stubs-fresh check lock audit trial clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 16

# Installed again whenever what is declared changes.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

setup: $(VENV)/.installed ## virtual environment with everything in it

model: setup ## fetch the small real model (135M parameters, once)
	@$(BIN)/tidepipe model pull $(MODEL)

demo: model ## answer a batch of prompts on a local cluster of real processes
	@mkdir -p .demo
	@$(BIN)/tidepipe batch examples/demo.jsonl -o .demo/answers.jsonl --model $(MODEL) --stages $(DEMO_STAGES)
	@$(BIN)/python examples/show_answers.py examples/demo.jsonl .demo/answers.jsonl

test: model ## the whole test suite
	$(BIN)/python -m pytest

stubs: setup ## generate the stubs from protos/
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --grpc_python_out=. \
		--mypy_out=quiet:. --mypy_grpc_out=quiet:. protos/tidepipe/v1/*.proto

stubs-fresh: setup ## fail if the committed stubs are not those of protos/
	@out=$$(mktemp -d); trap 'rm -rf "$$out"' EXIT; \
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$$out --grpc_python_out=$$out \
		--mypy_out=quiet:$$out --mypy_grpc_out=quiet:$$out protos/tidepipe/v1/*.proto; \
	diff -r -x __pycache__ -x __init__.py $$out/tidepipe/v1 tidepipe/v1 \
		|| { echo 'the stubs are stale: run `make stubs` and commit'; exit 1; }

lint: setup ## ruff and buf
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/buf lint protos
	$(BIN)/buf format --diff --exit-code protos

types: setup ## mypy, strict
	$(BIN)/mypy

imports: setup ## the import contract: the brain stays pure
	$(BIN)/lint-imports

check: lint types imports stubs-fresh ## everything but the tests

lock: setup ## write constraints.txt from the present environment
	@{ echo '# Exact versions of everything, transitive ones included. Made by `make lock`.'; \
	$(BIN)/python -m pip freeze --exclude-editable --exclude tidepipe | sed -E 's/\+cpu$$//'; } > constraints.txt

audit: ## known vulnerabilities in what constraints.txt names (asks pypi.org's advisory service)
	test -x .audit/bin/pip-audit || { $(PYTHON) -m venv .audit && .audit/bin/python -m pip install --quiet pip-audit==2.10.1; }
	.audit/bin/pip-audit --strict --disable-pip --no-deps --requirement constraints.txt

trial: model ## launch and hurt the compose deployment, if this machine can have a container engine (root)
	$(BIN)/python -m deploy.trial --model "$$($(BIN)/tidepipe model pull $(MODEL) | tail -1)"

clean: ## remove what make made
	rm -rf $(VENV) .demo .audit build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
