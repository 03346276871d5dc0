# `make demo` and `make test` set up their own environment in .venv; nothing but Python 3.10 to 3.13 and a C++ compiler is
# needed. PYTHON=python3.12 picks the interpreter of a new .venv.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
DEMO_MINUTES ?= 4
# mIoU every engine must reach; nothing is promised of another training time. Two cores with AVX2 alone, shared with other
# programs, reached 0.47 in 4 minutes and 233 updates
DEMO_MIOU ?= $(if $(filter 4,$(DEMO_MINUTES)),0.40,0)
CAMVID ?= ../shared/data/camvid
WEIGHTS ?= ../shared/weights/vit_small_patch14_imgfocus_fp16.safetensors
RUN ?= runs/camvid
BIN := $(VENV)/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart=0
SOURCES := setup.py pyproject.toml CMakeLists.txt constraints.txt $(shell find csrc -name '*.cc' -o -name '*.h')

.PHONY: setup demo camvid speed gpu test lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,tensorrt-rtx]'
	touch $@

# Train on the embedded shapes, then every engine, judged: the page is $(DEMO)/report.html.
demo: setup
	$(BIN)/segmenter train --dataset shapes --out $(DEMO)/run --resume never --steps 1200 --max-minutes $(DEMO_MINUTES) \
	    --batch 16 --optimizer adamw --lr 2e-3 --betas 0.9 0.98 --weight-decay 0.05 --clip-grad 1 --warmup 20 \
	    --augment flip --loss-stride 2 --eval-every 0
	$(BIN)/segmenter pipeline $(DEMO)/run/last --out $(DEMO)/engines --dataset shapes --verify-images 64
	rm -rf $(DEMO)/bench
	$(BIN)/segmenter bench-throughput --folder $(DEMO)/engines --dataset shapes --out $(DEMO)/bench --rounds 3 \
	    --burst-seconds 0.5
	$(BIN)/segmenter bench-miou --folder $(DEMO)/engines --dataset shapes --out $(DEMO)/bench \
	    --require-miou $(DEMO_MIOU)
	$(BIN)/segmenter report $(DEMO)/bench/*.json --out $(DEMO)/report.html

# The same on real images: a pretrained ViT-S/14, its decoder probed, then fine-tuned: half an hour on 2 cores with BF16,
# two hours on older ones.
camvid: setup
	$(BIN)/segmenter pretrained $(WEIGHTS) --out $(RUN)/init --dataset camvid --decoder linear --blocks 9 \
	    --height 364 --width 476
	$(BIN)/segmenter probe $(RUN)/init --out $(RUN)/probed --dataset camvid --data $(CAMVID)
	$(BIN)/segmenter train --dataset camvid --data $(CAMVID) --init $(RUN)/probed --out $(RUN)/run --optimizer adamw \
	    --lr 3e-4 --backbone-lr 3e-5 --min-lr 3e-6 --warmup 10 --clip-grad 1 --augment mild --batch 2 --loss-stride 2 \
	    --eval-every 0 --ema 0.99 --steps 2000
	$(BIN)/segmenter pipeline $(RUN)/run/last --out $(RUN)/engines --dataset camvid --data $(CAMVID) --height 360 --width 480
	$(BIN)/segmenter bench-throughput --folder $(RUN)/engines --dataset camvid --data $(CAMVID) --out $(RUN)/bench
	$(BIN)/segmenter bench-miou --folder $(RUN)/engines --dataset camvid --data $(CAMVID) --out $(RUN)/bench \
	    --require-miou 0.66
	$(BIN)/segmenter report $(RUN)/bench/*.json --out $(RUN)/report.html

# The paper's sizes with random weights, against the official implementation's way: how many times faster each engine is.
speed: setup
	$(BIN)/python bench/throughput.py --engine all --variant Seg-Ti-Mask/16 --height 512 --width 512
	$(BIN)/python bench/throughput.py --engine all --variant Seg-S-Mask/16 --height 512 --width 512

# On a machine with an NVIDIA GPU: kernels tested and tuned on it, then judged with everything else.
gpu: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gpu]'
	$(BIN)/python -m pytest tests/kernels; code=$$?; \
	$(BIN)/python -m segmenter_kernels.tune && \
	$(BIN)/python -m bench.acceptance --out runs/acceptance --minutes 30 && exit $$code

# In two processes of a thread each: more would wait for each other on two cores. Kernels first, as they say soonest what
# a new Triton changed. Files keep their order: left to itself, pytest-xdist puts those of few tests last, and they take
# the longest.
test: lint
	$(PYTEST) tests/kernels
	$(PYTEST) --ignore tests/kernels

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(DEMO) build
