# Two commands do everything on a fresh machine with Python >= 3.10:
#   make demo    set up, then run the demo (about 5 minutes the first time, under a minute after)
#   make test    set up, then lint, type-check and run every test
# For contributors: make bench (about 40 minutes, on an otherwise idle machine) and make readme.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test check bench readme clean

demo: $(VENV)/.ready
	$(BIN)/ckcontrol demo

test: check
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n auto --dist worksteal

check: $(VENV)/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@# Type-check what users get: the built package, in which retrieval/ and eval/ are ckcontrol.retrieval and .eval.
	@rm -rf build/typed && PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --no-deps --no-build-isolation --target build/typed .
	cd build/typed && MYPYPATH=. ../../$(BIN)/mypy --strict --config-file ../../pyproject.toml -p ckcontrol

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/matmul.py
	$(BIN)/python benchmarks/two_stream.py --json benchmarks/results/two_stream.json
	$(BIN)/python benchmarks/capitals.py --json benchmarks/results/capitals.json

readme: $(VENV)/.ready
	$(BIN)/python benchmarks/readme.py

$(VENV)/.ready: pyproject.toml constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "ckcontrol needs Python 3.10 or later; $(PYTHON) is older. Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@echo "Setting up $(VENV) (once; a few minutes, about 2 GB) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check --upgrade pip "setuptools>=77" wheel
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	@PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --disable-pip-version-check --no-build-isolation -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
