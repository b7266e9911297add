# `make demo` and `make test` do everything from a fresh clone; the rest is for people who change the code.
PYTHON ?= python3
VENV ?= .venv
# Where torch comes from. Without an NVIDIA GPU this index saves gigabytes of CUDA packages:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
GOLDEN ?= ../shared/golden
DEMO ?= demo/sample
# Minutes that the demo fits Gaussians.
MINUTES ?= 1.5
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SHELL := /bin/sh

.PHONY: help demo install dev extras check format test test-slow test-wheel test-gpu parity bench system-libs clean

help:
	@echo "make demo        install geo4d, reconstruct the bundled photos, fit Gaussians, make a video and a player"
	@echo "make test        the tests, but for slow ones and the GPU's (fewer than 10 minutes on 2 cores)"
	@echo "make test-slow   the checks that take minutes; make test-wheel: the suite against the built wheel"
	@echo "make parity      parity tests against the folder GOLDEN=$(GOLDEN); make test-gpu: those that need CUDA"
	@echo "make check       format, lint, types, layers, README tables"
	@echo "make bench       the published numbers, on this machine"

demo: install
	$(BIN)/geo4d reconstruct assets/sample/images -o $(DEMO) --scale marker:DICT_4X4_50:0.05 --overwrite
	$(BIN)/geo4d evaluate poses $(DEMO) --reference assets/sample/reference/cameras.json
	$(BIN)/geo4d evaluate depth $(DEMO) --reference assets/sample/reference
	$(BIN)/geo4d fit $(DEMO) --minutes $(MINUTES) --overwrite
	$(BIN)/geo4d evaluate views $(DEMO)
	$(BIN)/geo4d render $(DEMO) -o $(DEMO)-orbit --trajectory orbit --frames 60 --width 640 --overwrite
	$(BIN)/geo4d view $(DEMO) --write-only
	@echo "Look at $(DEMO)/player.html (in a browser), $(DEMO)-orbit/rgb.mp4, $(DEMO)/report.html and $(DEMO)/views.html"

install: $(VENV)/.geo4d-base
dev: $(VENV)/.geo4d-dev

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "geo4d needs Python >= 3.11, found " + sys.version)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.geo4d-base: pyproject.toml constraints.txt | $(VENV)/bin/python system-libs
	$(PIP) install -q --upgrade pip
	$(PIP) install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.geo4d-dev: $(VENV)/.geo4d-base
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

# What only some exports, captures and SAM 2 need, for the tests of these.
extras: dev
	$(PIP) install -q -c constraints.txt -e '.[viewer,captures,hub]'

system-libs:
	@sh scripts/system_libs.sh

check: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python benchmarks/tables.py --check

format: dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# Two at a time, a file's tests in one process: most of them use one core.
test: dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: dev
	$(BIN)/python -m pytest -m slow

test-gpu: dev
	$(BIN)/python -m pytest -m gpu -rs

parity: dev
	GOLDEN=$(abspath $(GOLDEN)) $(BIN)/python -m pytest -m "parity and not gpu"

# The wheel is installed into an environment of its own, and the suite runs from a folder where the sources are not.
test-wheel: dev
	sh scripts/test_wheel.sh $(BIN)/python

bench: dev
	$(BIN)/geo4d bench

clean:
	rm -rf $(VENV) dist build demo
