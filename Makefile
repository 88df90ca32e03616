# Every target makes or reuses .venv by itself. Steps leave a stamp file, so a second call is quick and an interrupted
# one resumes. Needed beforehand: Python 3.11, make, git and a C compiler.

PYTHON ?= python3.11
VLLM := 0.32.0
# The other releases that the kit is tested with
RELEASES ?= 0.29.0 0.30.0 0.31.0 0.33.0
TORCH := 2.13.0

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.stamps
REPORTS := .kvconform/reports
REFERENCE := kvconform.reference.file_store:FileStoreConnector
# A connector with one defect, and a test that shows it.
DEFECTIVE := tests/embedded/demo.toml
DEFECTIVE_TEST := test_planned_work_is_handed_out_once
PINNED_OFFLOAD := kvconform.reference.pinned_offload:PinnedOffloadConnector

# More options for pytest, e.g. make test PYTEST_ARGS="-k layout"
PYTEST_ARGS ?=
# Processes that make test and make matrix use
JOBS ?= 2
# Options for make matrix and make matrix-all, e.g. MATRIX_ARGS="--only failures:" or "--resume kept.jsonl"
MATRIX_ARGS ?=
# Options for make differential, e.g. DIFFERENTIAL_ARGS="--only failures:" or "--sample 40"
DIFFERENTIAL_ARGS ?=
# Options for make mutate, e.g. MUTATE_ARGS="--changed main" or files under kvconform/
MUTATE_ARGS ?=

# The Python of make cuda: .venv has torch and vLLM for no device
CUDA_PYTHON ?= python3

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Compiling all of torch and vLLM takes longer than the tests; what is imported gets compiled then, and once only:
# without files of bytecode, every process compiles vLLM anew, which costs more than importing it.
unexport PYTHONDONTWRITEBYTECODE
INSTALL := $(BIN)/python -m pip install --quiet --no-compile
PINNED := $(INSTALL) --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test coverage mutate releases $(RELEASES:%=release-%) oldest matrix matrix-all differential cuda bench lint format rulebook out-of-tree wheel install clean

help: ## Show what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMPS)/embedded ## Install the kit without vLLM, show a defect, and run the suites on the reference connector
	@mkdir -p $(REPORTS)
	@echo "First a connector with a defect: it has to fail."
	$(BIN)/pytest --kvconform-config=$(DEFECTIVE) -k $(DEFECTIVE_TEST); test $$? -eq 1
	@echo "Now the reference connector: it has to pass."
	$(BIN)/pytest --kvconform=$(REFERENCE) --kvconform-report=$(REPORTS)/demo.html $(PYTEST_ARGS)
	@echo "The verdict on each rule is above; as a page: $(abspath $(REPORTS)/demo.html)"

test: $(STAMPS)/dev $(STAMPS)/vllm ## Install everything, the real vLLM too, and run all tests of the project
	$(BIN)/pytest --numprocesses=$(JOBS) $(PYTEST_ARGS)

coverage: $(STAMPS)/dev $(STAMPS)/vllm ## Run all tests and report branch coverage, the connectors' processes included
	$(BIN)/coverage erase
	KVCONFORM_GRACE=5 $(BIN)/coverage run -m pytest --numprocesses=$(JOBS) $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered

mutate: $(STAMPS)/dev $(STAMPS)/vllm ## Break the kit's checks and its oracle one thing at a time: their tests must fail
	$(BIN)/python tests/mutation/mutate.py --jobs=$(JOBS) $(MUTATE_ARGS)

releases: $(RELEASES:%=release-%) ## Run the suites on the reference connector with the other vLLM releases

$(RELEASES:%=release-%): release-%: $(STAMPS)/kvconform $(STAMPS)/vllm .overlays/vllm-%/.installed
	PYTHONPATH=.overlays/vllm-$* $(BIN)/pytest --kvconform=$(REFERENCE) $(PYTEST_ARGS)

oldest: $(STAMPS)/embedded .overlays/oldest/.installed ## Run the suites on the reference connector with the oldest pytest, hypothesis, ... that are accepted
	PYTHONPATH=.overlays/oldest $(BIN)/python -m pytest --kvconform=$(REFERENCE) --kvconform-engine=embedded $(PYTEST_ARGS)

matrix: $(STAMPS)/dev $(STAMPS)/vllm ## Break every rule once: mutants must be caught, legal connectors must pass
	$(BIN)/python tests/mutants/kill_matrix.py --cover --again --jobs=$(JOBS) $(MATRIX_ARGS)

matrix-all: $(STAMPS)/dev $(STAMPS)/vllm ## All mutants and legal connectors, and the matrix in the docs written anew
	$(BIN)/python tests/mutants/kill_matrix.py --narrow --jobs=$(JOBS) --book=docs/kill_matrix.md $(MATRIX_ARGS)

differential: $(STAMPS)/dev $(STAMPS)/vllm ## All connectors of the matrix on vLLM and on the engine embedded: what differs
	$(BIN)/python tests/embedded/differential.py --jobs=$(JOBS) $(DIFFERENTIAL_ARGS)

cuda: ## On a machine with an NVIDIA GPU, in an environment with vLLM for CUDA: the suites there, and the mutants that need it
	$(CUDA_PYTHON) -m pytest --kvconform=$(PINNED_OFFLOAD) --kvconform-device=cuda $(PYTEST_ARGS)
	$(CUDA_PYTHON) tests/mutants/kill_matrix.py --device=cuda --jobs=1 $(MATRIX_ARGS)

bench: $(STAMPS)/bench $(STAMPS)/vllm ## Measure the kit beside its peers, and write the figures into the docs
	@mkdir -p .kvconform
	$(BIN)/python -m pytest -c benchmarks/pytest.ini benchmarks --benchmark-json=.kvconform/benchmarks.json
	$(BIN)/python benchmarks/figures.py .kvconform/benchmarks.json docs/performance.md

lint: $(STAMPS)/dev ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMPS)/dev ## Let ruff put the source into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

rulebook: $(STAMPS)/kvconform ## Write docs/rules from the catalogue and the suites
	$(BIN)/kvconform rules --book docs/rules

out-of-tree: $(STAMPS)/dev $(STAMPS)/vllm ## Try the built wheel from a vendor's package in a clean environment
	$(BIN)/python .ci/out_of_tree.py

wheel: $(STAMPS)/dev ## Build the distribution into dist/
	$(BIN)/python -m build --outdir dist

install: $(STAMPS)/dev $(STAMPS)/vllm ## Only make .venv

clean: ## Remove everything that was made
	rm -rf .venv .overlays .kvconform build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMPS)/venv:
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# vLLM's source distribution, built for no device at all: its scheduler, KV cache manager and connectors are Python.
$(STAMPS)/vllm: $(STAMPS)/venv constraints.txt
	@echo "Installing torch $(TORCH) and vLLM $(VLLM) into $(VENV): about two minutes."
	$(PINNED) torch==$(TORCH) setuptools "setuptools-scm>=8" "setuptools-rust>=1.9" wheel jinja2 packaging cmake ninja
	VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$(VLLM) \
	  $(PINNED) --no-build-isolation --no-binary vllm vllm==$(VLLM)
	@touch $@

$(STAMPS)/kvconform: $(STAMPS)/venv pyproject.toml constraints.txt
	$(PINNED) --editable .
	@touch $@

# What the engine 'embedded' needs besides the kit.
$(STAMPS)/embedded: $(STAMPS)/kvconform
	$(PINNED) torch==$(TORCH) --editable ".[embedded]"
	@touch $@

$(STAMPS)/dev: $(STAMPS)/kvconform
	$(PINNED) --editable ".[dev]"
	@touch $@

# Without py-cpuinfo2, which would overwrite the module cpuinfo of vLLM's py-cpuinfo; that one serves as well.
$(STAMPS)/bench: $(STAMPS)/dev
	$(PINNED) --no-deps pytest-benchmark
	@touch $@

.overlays/oldest/.installed: $(STAMPS)/kvconform pyproject.toml .ci/oldest.py
	rm -rf $(@D)
	$(INSTALL) --target $(@D) $$($(BIN)/python .ci/oldest.py)
	@touch $@

# Another release over the dependencies of the first one; PYTHONPATH puts it in front.
.overlays/vllm-%/.installed: $(STAMPS)/vllm
	@echo "Installing vLLM $* into $(@D)."
	rm -rf $(@D)
	VLLM_TARGET_DEVICE=empty VLLM_VERSION_OVERRIDE=$* \
	  $(INSTALL) --no-build-isolation --no-deps --no-binary vllm --target $(@D) vllm==$*
	@touch $@
