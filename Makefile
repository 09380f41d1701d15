PYTHON ?= python3
PORT ?= 8080
ARCHITECTURE ?=
RUNTIME ?=
TAGS ?=
STACK ?= embeddings
PARAMETERS ?=
BIN := .venv/bin
MODELS := build/ml-models
MODEL := $(MODELS)/all-MiniLM-L6-v2/current
RANDOM_MODEL := build/random-model
CLIENTS := build/clients
AWS := build/aws
OPERATORS := $(addprefix kernels/operators-linux-,x86_64.so aarch64.so)
MACHINE := $(shell uname -m)
CLANG ?= clang-19
SANITIZED := build/sanitized/operators-linux-$(MACHINE).so
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# A path and not an import finder, which would cost every start of this Python 10 ms.
EDITABLE := --config-settings editable_mode=compat --editable

# sam reads the region only from this variable.
ifdef AWS_REGION
export AWS_DEFAULT_REGION := $(AWS_REGION)
endif

.PHONY: help serve test deploy remove clients aws-tools portability emulation lint sanitize format model operators benchmarks lock clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 13

serve: $(MODEL) ## Build the model if it is missing, then answer POST http://127.0.0.1:8080/embed (PORT=N)
	MODEL_CACHE_DIR=$(MODELS) $(BIN)/python -m local --port $(PORT)

test: lint $(MODEL) ## Run lint, types and all tests (EVAL_DATA=DIR adds the evaluation sets)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

clients: $(CLIENTS)/.done ## Install the API clients that tests/test_clients.py runs, in an environment of their own

# npm replaces the registry in package-lock.json by the one in its configuration.
$(CLIENTS)/.done: $(addprefix tests/clients/,requirements.txt package.json package-lock.json)
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip --disable-pip-version-check install --quiet --requirement tests/clients/requirements.txt
	cp tests/clients/package.json tests/clients/package-lock.json $(CLIENTS)
	npm ci --prefix $(CLIENTS) --no-audit --no-fund \
	|| echo "warning: without npm the JavaScript client is not tested: install Node.js 20, then make -B clients"
	@touch $@

aws-tools: $(AWS)/.done ## Install AWS's tools and a stand-in for AWS, for the tests of template, loader and publishing

$(AWS)/.done: tests/aws/requirements.txt
	$(PYTHON) -m venv $(AWS)
	$(AWS)/bin/python -m pip --disable-pip-version-check install --quiet --requirement $<
	@touch $@

portability: emulation $(MODEL) ## Compare the vectors of this CPU, AVX2-only x86 and Graviton2 (needs qemu-user, root)
	$(BIN)/python -m pytest tests/test_portability.py

emulation: .venv/test ## Make the arm64 Python that tests/test_portability.py emulates (needs apt, Debian 12)
	$(BIN)/python -m benchmarks.emulation

check: lint $(RANDOM_MODEL)/.done ## Run lint, types and the tests that need no real model, on a random one (under 90 s)
	TEST_RANDOM_MODEL=$(RANDOM_MODEL) $(BIN)/python -m pytest --numprocesses auto --dist loadfile

$(RANDOM_MODEL)/.done: .venv/test $(OPERATORS) tests/support/random_model.py $(wildcard artifact/*.py export/*.py quantize/*.py)
	$(BIN)/python -m tests.support.random_model $(RANDOM_MODEL)
	@touch $@

lint: .venv/test ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror kernels/*.[ch]
	cd kernels && ../$(BIN)/clang-tidy --quiet operators.c -- -std=c17
	cd kernels && ../$(BIN)/clang-tidy --quiet avx2.c avx512.c vnni.c -- -std=c17 -ffreestanding --target=x86_64
	cd kernels && ../$(BIN)/clang-tidy --quiet neon.c -- -std=c17 -ffreestanding --target=aarch64

sanitize: $(SANITIZED) $(MODEL) ## Run the operators' tests under AddressSanitizer and UBSan (needs clang 19)
	TEST_OPERATORS=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 \
	LD_PRELOAD=$$($(CLANG) -print-file-name=libclang_rt.asan-$(MACHINE).so) $(BIN)/python -m pytest tests/test_kernels.py tests/test_model_fuzz.py

$(SANITIZED): .venv/test $(wildcard kernels/*.c kernels/*.h)
	mkdir -p $(@D)
	cd kernels && $(CLANG) -std=c17 -O1 -g -ffp-contract=off -fvisibility=hidden -fPIC -shared -shared-libsan \
		-fsanitize=address,undefined -fno-sanitize-recover=all -Wno-psabi \
		-o ../$@ operators.c $(if $(filter x86_64,$(MACHINE)),avx2.c avx512.c vnni.c,neon.c)

format: .venv/test ## Apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i kernels/*.[ch]

model: $(MODEL) ## Build the artifact folder build/ml-models

operators: $(OPERATORS) ## Compile kernels/, the INT8 model's operators, for Lambda and this machine

$(OPERATORS): .venv/serve $(wildcard kernels/*.py kernels/*.c kernels/*.h)
	$(BIN)/python -m kernels
	@touch $@

$(MODEL): .venv/serve $(OPERATORS) $(wildcard artifact/*.py export/*.py quantize/*.py)
	$(BIN)/python -m export --output $(MODELS)

benchmarks: .venv/test $(MODEL) ## Measure all, write docs/benchmarks.md and the README's figures (over an hour, on a quiet machine)
	$(PIP) $(EDITABLE) '.[export,local,benchmarks,test,peers]'
	$(BIN)/python -m benchmarks all

deploy: .venv/publish $(AWS)/.done $(MODEL) ## Build, deploy and publish (STACK=NAME ARCHITECTURE=arm64 PARAMETERS="A=B C=D" TAGS="E=F")
	$(BIN)/python -m deploy apply --stack $(STACK) $(addprefix --architecture ,$(ARCHITECTURE)) $(PARAMETERS) $(if $(TAGS),--tags $(TAGS))

remove: .venv/publish $(AWS)/.done ## Delete a stack and all models that it has (STACK=NAME YES=1)
	$(BIN)/python -m deploy remove --stack $(STACK) $(if $(YES),--yes)

# What `sam build` calls, with the folder to fill in ARTIFACTS_DIR.
BUILT_FOR = $(addprefix --architecture ,$(ARCHITECTURE)) $(addprefix --python ,$(RUNTIME:python%=%))

build-EmbeddingFunction: $(OPERATORS)
	$(PYTHON) -m deploy.package function $(ARTIFACTS_DIR) $(BUILT_FOR)

build-LoaderFunction:
	$(PYTHON) -m deploy.package loader $(ARTIFACTS_DIR) $(BUILT_FOR)

build-ModelLayer: $(MODEL)
	$(BIN)/python -m deploy.package model $(ARTIFACTS_DIR)

lock: .venv/test ## Write the versions now installed to constraints.txt
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt

clean: ## Remove the virtual environment and everything built
	rm -rf .venv build *.egg-info kernels/*.so kernels/.new-*

# torch comes first and by itself: its own index has CPU builds, PyPI's Linux builds bring gigabytes of CUDA.
# Where that index cannot be reached, pip goes on without it.
.venv/serve: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP) --retries 1 --extra-index-url https://download.pytorch.org/whl/cpu torch
	$(PIP) $(EDITABLE) '.[export,local]'
	@touch $@

.venv/publish: .venv/serve
	$(PIP) $(EDITABLE) '.[aws,export,local]'
	@touch $@

.venv/test: .venv/serve
	$(PIP) $(EDITABLE) '.[aws,export,local,benchmarks,test]'
	@touch $@
