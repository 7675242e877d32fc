# Every target makes what it needs: on a fresh machine with Python 3.11 and pip, `make demo` and `make test` are enough.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test check bench docs venv clean

demo: .venv/.installed   ## table and pictures on 400 photos, into runs/demo/
	$(BIN)/diml demo

test: .venv/.complete    ## the default tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto

check: .venv/.complete   ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/.complete   ## small sizes of all benchmarks
	$(BIN)/python benchmarks/evaluation_memory.py --images 5000 --queries 500 --classes 1000
	$(BIN)/python benchmarks/embedding.py --pictures 128 --runs 3

docs: .venv/.complete    ## draw the pictures of the README and docs/explain.md anew
	$(BIN)/python docs/draw_pictures.py

venv: .venv/.complete    ## .venv with all extras

clean:                   ## remove .venv and what tools left behind
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "diml needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv

# A stamp is written only when its installation ended well, so an interrupted one is taken up again.
.venv/.installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable .
	touch $@

.venv/.complete: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --editable '.[bninception,hub,track,dev]'
	touch .venv/.installed $@
