# `make demo` and `make test` set up their own environment in .venv; nothing but Python 3.10 to 3.13 and a C++ compiler is
# needed. PYTHON=python3.12 picks the interpreter of a new .venv.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
DEMO_MINUTES ?= 4.5
BIN := $(VENV)/bin
SOURCES := setup.py pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc -name '*.cc' -o -name '*.h')

.PHONY: setup demo camvid speed test lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,tensorrt-rtx]'
	touch $@

# Train on the embedded shapes, then every engine, judged: the page is $(DEMO)/report.html.
demo: setup
	$(BIN)/segmenter train --dataset shapes --out $(DEMO)/run --resume never --optimizer adamw --lr 2e-3 --batch 16 \
	    --warmup 50 --weight-decay 0.05 --clip-grad 1 --augment flip --max-minutes $(DEMO_MINUTES) --eval-every 0
	$(BIN)/segmenter pipeline $(DEMO)/run/last --out $(DEMO)/engines --dataset shapes --verify-images 64
	$(BIN)/segmenter bench-throughput --folder $(DEMO)/engines --dataset shapes --out $(DEMO)/bench --rounds 3 \
	    --burst-seconds 0.5
	$(BIN)/segmenter bench-miou --folder $(DEMO)/engines --dataset shapes --out $(DEMO)/bench
	$(BIN)/segmenter report $(DEMO)/bench/*.json --out $(DEMO)/report.html

test: lint
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO) build
