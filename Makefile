# The two commands of the README: `make demo` and `make test`. Both set up what they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
MODEL ?= smollm2-135m
DEMO_STAGES ?= 2

.PHONY: help demo test setup model stubs released lint types imports stubs-fresh check lock audit wheel-check vllm-check gpu-check trial clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 16

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Installed again whenever what is declared changes. Exact versions, each file checked against its hash. PyTorch
# alone comes without one: which build of it is wanted (CPU, or which CUDA) is the choice of the package index.
$(VENV)/.installed: pyproject.toml locks/dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing what locks/dev.txt names: a minute or a few, without a word"
	$(PIP) --require-hashes -r locks/dev.txt
	@echo "installing PyTorch: 200 MB for CPUs, several GB if the index has the CUDA build only"
	$(PIP) "$$($(BIN)/python deploy/requirements.py --only torch)"
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

setup: $(VENV)/.installed ## virtual environment with everything in it

model: setup ## fetch the small real model (135M parameters, once)
	@$(BIN)/tidepipe model pull $(MODEL)

demo: model ## answer a batch of prompts on a local cluster of real processes
	@mkdir -p .demo
	@$(BIN)/tidepipe batch examples/demo.jsonl -o .demo/answers.jsonl --model $(MODEL) --stages $(DEMO_STAGES)
	@$(BIN)/python examples/show_answers.py examples/demo.jsonl .demo/answers.jsonl

# Faults take longest and come first, so that no core waits at the end.
test: model ## the whole test suite, two files at a time: unit tests, then those with real processes
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/unit
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/faults tests/integration

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
	$(BIN)/buf breaking protos --against $(RELEASED)

# The protos of the last release, as buf's image: clients and services of one minor version apart understand each other.
RELEASED := protos/released.binpb

released: setup ## at a release: from now on the protos stay compatible with these
	$(BIN)/buf build protos -o $(RELEASED)

types: setup ## mypy, strict
	$(BIN)/mypy

imports: setup ## the import contract: the brain stays pure
	$(BIN)/lint-imports

check: lint types imports stubs-fresh ## everything but the tests

# What PyTorch's CUDA build alone needs comes with it, from the index that has it.
CUDA_PARTS := triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc \
	cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)
LOCK := .lock/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--no-emit-package torch $(foreach name,$(CUDA_PARTS),--no-emit-package $(name))

lock: ## write locks/ anew from pyproject.toml; `make lock UPGRADE=--upgrade` takes newer versions
	test -x .lock/bin/uv || { $(PYTHON) -m venv .lock && .lock/bin/python -m pip install --quiet uv==0.13.9; }
	$(LOCK) $(UPGRADE) --extra dev pyproject.toml -o locks/dev.txt
	$(LOCK) -c locks/dev.txt pyproject.toml -o locks/client.txt
	$(LOCK) -c locks/dev.txt --extra server pyproject.toml -o locks/worker.txt
	$(PYTHON) deploy/requirements.py --without torch | $(LOCK) -c locks/dev.txt - -o locks/service.txt

audit: ## known vulnerabilities in what locks/ names (asks pypi.org's advisory service)
	test -x .audit/bin/pip-audit || { $(PYTHON) -m venv .audit && .audit/bin/python -m pip install --quiet pip-audit==2.10.1; }
	.audit/bin/pip-audit --strict --disable-pip --requirement locks/dev.txt

wheel-check: model ## the wheel, tried in empty environments: the client alone, and a server
	$(BIN)/python -m deploy.wheel_check

vllm-check: model ## our scheduler in a real vLLM, and its workers as stages: in environments of their own
	$(BIN)/python -m deploy.vllm_check

gpu-check: setup ## one GPU, within eight minutes: exactness, attention, graphs, throughput; writes gpu-check.json
	$(BIN)/python -m deploy.gpu_check

trial: model ## launch and hurt the compose deployment, if this machine can have a container engine (root)
	$(BIN)/python -m deploy.trial --model "$$($(BIN)/tidepipe model pull $(MODEL) | tail -1)" $(if $(PYTHON_IN),--python $(PYTHON_IN))

clean: ## remove what make made
	rm -rf $(VENV) .demo .audit .lock build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
