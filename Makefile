# Everything this project can do is a target here; `make help` lists them.
#
# The machine needs only make and Python 3.11 or newer. uv does the installing when it is there,
# pip when it is not.  PYTHON=… picks the interpreter, UV= forces pip, ARGS=… goes to the command.

UV ?= $(shell command -v uv)
PYTHON ?=
ARGS ?=

BIN := .venv/bin

.PHONY: help demo test test-lowest lint format bench lock clean
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.core ## run examples/quickstart.py on an embedded database
	@$(BIN)/python examples/quickstart.py $(ARGS)

test: .venv/.dev ## run the tests on every backend that can be had
	@$(BIN)/python -m pytest $(ARGS)

test-lowest: .venv-lowest/.test ## run the tests on the oldest supported dependencies
	@.venv-lowest/bin/python -m pytest $(ARGS)

lint: .venv/.dev ## check style, types and the direction of imports
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check
	@$(BIN)/mypy
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-cache --no-logo

format: .venv/.dev ## format the code and fix what can be fixed
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: .venv/.dev ## compare the speed with upstream and with the bare drivers
	@$(BIN)/python -m benchmarks $(ARGS)

clean: ## delete everything that make and the tools made
	rm -rf .venv .venv-lowest build dist .*_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- Environments ---------------------------------------------------------------------------
# .venv holds the locked versions: .core what the library needs, .dev everything else too.
# .venv-lowest holds the lower bounds of pyproject.toml. Each stamp says that its installs are done.

ifneq ($(UV),)

create = $(UV) venv --quiet --allow-existing $(if $(PYTHON),--python $(PYTHON)) $(1)
install = $(UV) pip install --quiet --python .venv
lowest-uv = $(UV)

else

python := $(or $(PYTHON),python3)
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check
lowest-uv = .venv-lowest/bin/uv

define create
@$(python) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("eventmeta needs Python 3.11 or newer; name one with PYTHON=…")'
@$(python) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo 'This Python cannot make virtual environments (on Debian and Ubuntu: apt install python3-venv).' >&2; exit 1; }
$(python) -m venv $(1)
endef

endif

.venv/bin/python:
	$(call create,.venv)

.venv/.core: requirements.lock pyproject.toml | .venv/bin/python
	$(install) -r requirements.lock
	$(install) --no-deps --editable .
	@touch $@

.venv/.dev: requirements-dev.lock pyproject.toml | .venv/bin/python
	$(install) -r requirements-dev.lock
	$(install) --no-deps --editable .
	@touch .venv/.core $@

.venv-lowest/.test: pyproject.toml
	$(call create,.venv-lowest)
	$(if $(UV),,.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv)
	$(lowest-uv) pip install --quiet --python .venv-lowest --resolution lowest-direct \
		--editable '.[all]' --group test
	@touch $@

# --- Lock files -----------------------------------------------------------------------------
# One pair for all platforms and Pythons, with hashes; pip and uv both read them, from any index.

compile = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command 'make lock' pyproject.toml

lock: ## bring the lock files in line with pyproject.toml (ARGS=--upgrade: newest versions)
	@test -n '$(UV)' || { echo 'make lock needs uv' >&2; exit 1; }
	$(compile) $(ARGS) --all-extras --group dev --output-file requirements-dev.lock
	$(compile) $(ARGS) --constraint requirements-dev.lock --output-file requirements.lock
