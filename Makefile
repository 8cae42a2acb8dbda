# make demo   environment, a synthetic volume, its segmentation, its scores and a picture, in a few minutes
# make test   environment for training and export too, then all tests
# make bench  every benchmark on this machine, small: bench/index.html
# make charts benchmarks/results.svg and the table in benchmarks/README.md, of what lies in benchmarks/results
# make lint   formatting, lint and types
# make clean  everything made here but the environment
#
# Needs python3 (3.11 or later) and make. The environment is ./.venv; another one: make test VENV=/path/to/it

PYTHON ?= python3
VENV ?= .venv
# Where pip would choose a CUDA build and no GPU is to be used, a fraction of the download:
#   make test TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ROOMS := benchmarks cli engine export network postproc volumes
# A strict editable installation links file by file, which type checkers understand; what is new needs a new link.
LINKED := $(sort $(foreach room,$(ROOMS),$(wildcard $(room)/*.py $(room)/*.jinja $(room)/models/*/*)))
EDITABLE := --config-settings editable_mode=strict

.PHONY: demo test bench charts lint clean always
.NOTPARALLEL:

demo: $(VENV)/.fgnet-demo
	mkdir -p demo
	$(BIN)/fgnet-sample demo/sample.zarr --shape 64,512,512 --overwrite
	$(BIN)/fgnet-run demo/sample.zarr -o demo/segmentation.zarr --preview demo/preview.png --overwrite
	$(BIN)/fgnet-eval demo/segmentation.zarr demo/sample.zarr/labels/neurons
	@echo "raw | affinities | segmentation: demo/preview.png"

# A test process that dies ends the run: with another in its place, the rest may be waited for without end.
test: $(VENV)/.fgnet-test
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --max-worker-restart 0

# Its parts can be made smaller, or left out: make bench BENCH="engine decode". Each ends in bench/NAME.json.
BENCH ?= engine tiny decode scale pipeline
bench: $(BENCH:%=bench/%.json)
	$(BIN)/fgnet-bench report bench $^

bench/engine.json: $(VENV)/.fgnet-test always
	mkdir -p bench
	$(BIN)/fgnet-bench engine --blocks 2 --repeats 4 --launches 2 --output $@

# A Hiera-tiny of random weights, ours beside eager PyTorch alone: its other ways take minutes each.
bench/tiny.json: $(VENV)/.fgnet-test always
	mkdir -p bench
	$(BIN)/python -m fgnet.benchmarks.untrained tiny bench/tiny.bundle --precision fp32 int8
	$(BIN)/fgnet-bench engine bench/tiny.bundle --backend openvino,onnxruntime --blocks 1 --repeats 4 --launches 2 --output $@

bench/decode.json: $(VENV)/.fgnet-test always
	mkdir -p bench
	$(BIN)/fgnet-bench decode --shape "16,512,512;32,512,512" --repeats 3 --output $@

bench/scale.json: $(VENV)/.fgnet-test always
	mkdir -p bench
	$(BIN)/fgnet-bench scale --shape 16,256,256 --factors 1,2,4,8 --processes 1,2 --output $@ -- --decoder none

bench/pipeline.json: $(VENV)/.fgnet-test always
	mkdir -p bench
	$(BIN)/fgnet-bench pipeline --shape 32,256,256 --repeats 2 --output $@

charts: $(VENV)/.fgnet-test
	$(BIN)/python -m fgnet.benchmarks.recorded benchmarks

lint: $(VENV)/.fgnet-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(ROOMS:%=-p fgnet.%)

clean:
	rm -rf demo bench build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
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
$(VENV)/.fgnet-torch: Makefile | $(BIN)/python
	$(PIP) $(TORCH)
	$(PIP) setuptools wheel
	SAM2_BUILD_CUDA=0 $(PIP) --no-deps --no-build-isolation sam2
	$(PIP) hydra-core iopath tqdm pillow onnx onnxscript onnxslim matplotlib tensorboard
	$(PIP) --no-deps monai
	touch $@
