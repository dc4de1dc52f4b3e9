# `make` lists what there is. Everything works in a virtual environment of the checkout, .venv,
# which the first of these commands makes; PYTHON=... chooses the interpreter for it.

ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN := .venv/Scripts
else
PYTHON ?= python3
BIN := .venv/bin
endif

# An interpreter that nobody asked for by name may be replaced by one that fits.
MAKE_ENV := $(PYTHON) tools/make_env.py $(if $(filter file,$(origin PYTHON)),--any-python)

.DEFAULT_GOAL := help
.PHONY: help env demo test lint docs lock wheel doctor cpu-check cuda-check faults-check

help:
	@echo "make env    the environment, once: .venv with everything pinned (6.4 GB)"
	@echo "make demo   train, evaluate and draw on real photographs, within minutes"
	@echo "make test   all tests; ARGS='tests/ops -k name' chooses some"
	@echo "make lint   style of the code"
	@echo "make docs   site/: these pages as a web site; ARGS=--serve shows them while you write"
	@echo "make doctor what is installed, which kernels serve, and what to do about it"
	@echo "make wheel  dist/: the package to install elsewhere, with and without compiled kernels"
	@echo "make cpu-check    the CPU kernels under sanitizers, and for AArch64 where ziglang is installed"
	@echo "make cuda-check   the CUDA kernels for all GPUs, with nvcc but without a GPU (minutes)"
	@echo "make faults-check trainings, evaluations and predictions killed, and out of disk (half an hour)"
	@echo "make lock   resolve each requirements.in into requirements.txt anew (needs uv)"
	@echo "PYTHON=python3.11 with any of them chooses the interpreter."

env:
	@$(MAKE_ENV)

demo: env
	@$(BIN)/python tools/run_demo.py $(ARGS)

# A process per core, four at most for the sake of memory; a file's tests stay together, as they
# share what they make.
test: env
	@$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile $(ARGS)

lint: env
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# In an environment of its own, .venv-docs, which needs neither PyTorch nor a compiler.
docs:
	@$(PYTHON) tools/make_docs.py $(ARGS)

doctor: env
	@$(BIN)/python -m isda doctor

wheel: env
	@$(BIN)/python tools/make_wheels.py $(ARGS)

cpu-check: env
	@ISDA_CPU_CHECK=1 $(BIN)/python -m pytest tests/ops/test_cpu_build.py $(ARGS)

# What a GPU shows: tools/gpu_check.sh.
cuda-check: env
	@ISDA_CUDA_CHECK=1 $(BIN)/python -m pytest -rP tests/ops/test_cuda_build.py \
		tests/ops/test_cuda_kernels.py $(ARGS)

# Kills at random moments; ISDA_FAULTS_SEED repeats those of a former run, which it has printed.
faults-check: env
	@ISDA_FAULTS_CHECK=1 $(BIN)/python -m pytest -rP tests/engine/test_faults.py $(ARGS)

LOCK := uv --no-config pip compile --quiet --upgrade --universal --python-version 3.10 \
	--generate-hashes --custom-compile-command "make lock"

lock:
	$(LOCK) --output-file requirements.txt requirements.in
	$(LOCK) --output-file tools/docs_site/requirements.txt tools/docs_site/requirements.in
