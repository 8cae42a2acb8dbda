# make demo   environment, a synthetic volume, its segmentation, its scores and a picture, in a few minutes
# make test   environment for training and export too, then all tests
# make lint   formatting, lint and types
# make clean  everything made here but the environment
#
# Needs python3 (3.11 or later) and make. The environment is ./.venv; another one: make test VENV=/path/to/it

PYTHON ?= python3
VENV ?= .venv
# Where pip would choose a CUDA build and no GPU is to be used, a fraction of the download:
#   make test TORCH="torch==2.13.0 --index-url <the index of PyTorch's CPU builds>"
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ROOMS := benchmarks cli engine export network postproc volumes
# A strict editable installation links file by file, which type checkers understand; what is new needs a new link.
LINKED := $(sort $(foreach room,$(ROOMS),$(wildcard $(room)/*.py $(room)/models/*/*)))
EDITABLE := --config-settings editable_mode=strict

.PHONY: demo test lint clean always
.NOTPARALLEL:

demo: $(VENV)/.fgnet-demo
	mkdir -p demo
	$(BIN)/fgnet-sample demo/sample.zarr --shape 64,512,512 --overwrite
	$(BIN)/fgnet-run demo/sample.zarr -o demo/segmentation.zarr --preview demo/preview.png --overwrite
	$(BIN)/fgnet-eval demo/segmentation.zarr demo/sample.zarr/labels/neurons
	@echo "raw | affinities | segmentation: demo/preview.png"

test: $(VENV)/.fgnet-test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.fgnet-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(ROOMS:%=-p fgnet.%)

clean:
	rm -rf demo build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.fgnet-files $(VENV)/.fgnet-demo $(VENV)/.fgnet-test
	find $(ROOMS) tests -name __pycache__ -prune -exec rm -rf {} +

# An environment made by hand is taken as it is; what it lacks is installed into it.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# Changes where a file comes or goes, not where one is edited.
$(VENV)/.fgnet-files: always | $(BIN)/python
	@echo $(LINKED) | cmp -s - $@ || echo $(LINKED) > $@

$(VENV)/.fgnet-demo: pyproject.toml $(VENV)/.fgnet-files
	$(PIP) --editable '.[cpu]' $(EDITABLE)
	touch $@

$(VENV)/.fgnet-test: pyproject.toml $(VENV)/.fgnet-files | $(VENV)/.fgnet-torch
	$(PIP) --editable '.[cpu,rtx,dev]' $(EDITABLE)
	touch $@

# What the extra "train" installs, without torchvision: sam2 asks for it, but the image encoder does not use it, and it
# brings gigabytes of CUDA libraries where torch itself is a CPU build. So sam2 comes without its dependencies, and
# those that are real are named here. Its setup imports torch: with build isolation pip would download another one.
# Without SAM2_BUILD_CUDA=0 it would look for a CUDA compiler, for a kernel that is not used here either. MONAI, a peer
# that fgnet-bench pipeline measures, needs torch and numpy only, which are there.
$(VENV)/.fgnet-torch: | $(BIN)/python
	$(PIP) $(TORCH)
	$(PIP) setuptools wheel
	SAM2_BUILD_CUDA=0 $(PIP) --no-deps --no-build-isolation sam2
	$(PIP) hydra-core iopath tqdm pillow onnx onnxscript onnxslim
	$(PIP) --no-deps monai
	touch $@
