# Everything this project can do is a target here; `make help` lists them.
#
# The machine needs only make and Python 3.11 or newer. uv does the installing when it is there,
# pip when it is not.  PYTHON=… picks the interpreter, UV= forces pip, ARGS=… goes to the command,
# WORKERS=… says how many processes run the tests, each with servers of its own.

UV ?= $(shell command -v uv)
PYTHON ?=
ARGS ?=
WORKERS ?= auto

BIN := .venv/bin

pytest = python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist worksteal

.PHONY: help demo test test-all test-long test-lowest test-bench torture lint format docs bench lock clean
.DELETE_ON_ERROR:

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/.core ## run examples/quickstart.py on an embedded database
	@$(BIN)/python examples/quickstart.py $(ARGS)

test: .venv/.dev ## run some cases of every test, on all backends that can be had, in turns
	@$(BIN)/$(pytest) --quick $(ARGS)

test-all: .venv/.dev ## run every case of every test on every backend that can be had
	@$(BIN)/$(pytest) $(ARGS)

test-long: .venv/.dev ## run every test on every backend, with twenty times the examples
	@EVENTMETA_LONG=1 EVENTMETA_HYPOTHESIS_PROFILE=thorough $(BIN)/$(pytest) $(ARGS)

test-lowest: .venv-lowest/.test ## run the tests on the oldest supported dependencies
	@.venv-lowest/bin/$(pytest) $(ARGS)

test-bench: .venv-bench/.bench ## test the benchmarks with all peers installed
	@.venv-bench/bin/python -m pytest tests/benchmarks $(ARGS)

torture: .venv/.dev ## kills, cuts, clocks, full disks, locks, forks, and a check of every promise
	@$(BIN)/python -m tests.torture $(ARGS)

lint: .venv/.dev ## check style, types and the direction of imports
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --quiet --check
	@$(BIN)/mypy
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-cache --no-logo

format: .venv/.dev ## format the code and fix what can be fixed
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

docs: .venv-docs/.docs ## build the site of the docs in build/site; a broken link fails
	@.venv-docs/bin/python docs/reference/api.py
	@.venv-docs/bin/zensical build --clean --strict

bench: .venv-bench/.bench ## compare the speed with others (ARGS="run --help": how)
	@.venv-bench/bin/python -m benchmarks $(or $(ARGS),run)

clean: ## delete everything that make and the tools made
	rm -rf .venv .venv-bench .venv-docs .venv-lowest build dist .cache .*_cache .hypothesis docs/reference/api.md
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- Environments ---------------------------------------------------------------------------
# .venv holds the locked versions: .core what the library needs, .dev everything else too.
# .venv-bench holds those of the benchmarks, with the peers and what they hold back.
# .venv-docs holds what builds the site, and the library, whose docstrings are a page of it.
# .venv-lowest holds the lower bounds of pyproject.toml. Each stamp says that its installs are done.

ifneq ($(UV),)

create = $(UV) venv --quiet --allow-existing $(if $(PYTHON),--python $(PYTHON)) $(1)
install = $(UV) pip install --quiet --python .venv
install-bench = $(UV) pip install --quiet --python .venv-bench
install-docs = $(UV) pip install --quiet --python .venv-docs
lowest-uv = $(UV)

else

python := $(or $(PYTHON),python3)
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check
install-bench = .venv-bench/bin/python -m pip install --quiet --disable-pip-version-check
install-docs = .venv-docs/bin/python -m pip install --quiet --disable-pip-version-check
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

.venv-bench/.bench: requirements-bench.lock pyproject.toml
	$(call create,.venv-bench)
	$(install-bench) -r requirements-bench.lock
	$(install-bench) --no-deps --editable .
	@touch $@

.venv-docs/.docs: requirements-docs.lock pyproject.toml
	$(call create,.venv-docs)
	$(install-docs) -r requirements-docs.lock
	$(install-docs) --no-deps --editable .
	@touch $@

.venv-lowest/.test: pyproject.toml
	$(call create,.venv-lowest)
	$(if $(UV),,.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv)
	$(lowest-uv) pip install --quiet --python .venv-lowest --resolution lowest-direct \
		--editable '.[all]' --group test
	@touch $@

# --- Lock files -----------------------------------------------------------------------------
# For all platforms and Pythons, with hashes; pip and uv both read them, from any index. Those of the
# benchmarks are by themselves, as the peers hold back what others would have newer.

compile = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --custom-compile-command 'make lock' pyproject.toml

lock: ## bring the lock files in line with pyproject.toml (ARGS=--upgrade: newest versions)
	@test -n '$(UV)' || { echo 'make lock needs uv' >&2; exit 1; }
	$(compile) $(ARGS) --all-extras --group dev --output-file requirements-dev.lock
	$(compile) $(ARGS) --constraint requirements-dev.lock --output-file requirements.lock
	$(compile) $(ARGS) --all-extras --group bench --output-file requirements-bench.lock
	$(compile) $(ARGS) --constraint requirements-dev.lock --group docs --output-file requirements-docs.lock
