# `make run` sets everything up and runs the main job; `make check` sets everything up and passes every check.
.PHONY: help setup run check lint test docs bench chaos compose-test proto clean
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help:            ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: .venv/.stamp  ## make .venv with everything in it
.venv/.stamp: pyproject.toml constraints.txt
	[ -x .venv/bin/python ] || $(PYTHON) -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e '.[tensorflow,dev]'
	@if command -v npm >/dev/null && cd examples/node-peer && npm ci --silent --ignore-scripts --no-audit --no-fund; then :; \
	else echo "NOT INSTALLED: what the peer in JavaScript needs (no npm, or it failed); its test will be skipped" >&2; fi
	touch $@

run: setup       ## the main job: a CNN and an MLP entangled on all of MNIST
	entangled run

check: lint test ## everything that must pass

lint: setup      ## all checks but the tests
	ruff check .
	ruff format --check .
	scripts/check-generated.sh
	pyright --pythonpath .venv/bin/python
	lint-imports

test: setup      ## the tests, two files at a time
	pytest -n 2 --dist loadfile

docs: setup      ## the pages and the API reference, as HTML in site/
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

bench: setup     ## the benchmarks: ratios measured side by side
	python -m benchmarks.report

chaos: setup     ## kill at random for minutes, and check that nothing changed
	python -m benchmarks.chaos

compose-test:    ## a run in containers; needs a Docker engine
	scripts/compose-test.sh

proto: setup     ## generate entangled/v1 from proto/
	python -m grpc_tools.protoc -Iproto --python_out=. --pyi_out=. --grpc_python_out=. proto/entangled/v1/*.proto

clean:           ## remove what the other targets made
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
