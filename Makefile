PYTHON ?= python3
FLAVOUR ?= cpu
BASE_IMAGE ?=
V = .venv/bin/python

.PHONY: demo dev test lint image base-image image-check bench docs lock soak clean .venv

demo: .venv
	$(V) demo/run.py

.venv:
	@$(PYTHON) envs/install.py --venv .venv --editable .

dev:
	@$(PYTHON) envs/install.py --venv .venv --editable . --dev

test: dev
	$(V) -m pytest -n 2

lint: dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

image: .venv
	$(V) docker/build.py $(FLAVOUR) $(if $(BASE_IMAGE),--base $(BASE_IMAGE))

image-check: .venv
	$(V) docker/build.py $(FLAVOUR) --check $(if $(BASE_IMAGE),--base $(BASE_IMAGE))

base-image: .venv
	$(V) docker/build.py base

bench: dev
	set -e; for question in bench/*.py; do $(V) $$question; done

docs: .venv
	$(V) docs/generate.py

lock: dev
	$(V) envs/lock.py

soak: dev
	$(V) -m pytest -m soak

clean:
	rm -rf .venv .venv.lock .venv.old build dist demo-out .*_cache
