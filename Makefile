# Everything a person does here. `make help` lists it.

PYTHON ?= python3
VENV ?= .venv
# What is installed stays; on a new environment, the CPU's TensorFlow.
EXTRAS ?= $(or $(patsubst $(VENV)/.installed-%,%,$(firstword $(wildcard $(VENV)/.installed-*))),cpu)
BIN = $(VENV)/bin
# The pins are those of the CPU; a GPU's and a TPU's TensorFlow bring others.
CONSTRAINTS = $(if $(filter cpu,$(EXTRAS)),--constraint constraints.txt)
INSTALLED = $(VENV)/.installed-$(EXTRAS)

INPUT ?=
IMAGES ?=
OUTPUT ?=
RUNNER ?=
GIN ?=
DATA ?=
MODEL ?=
EMBEDDINGS ?=
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-images preprocess train evaluate export embed index search report serve test test-slow lint format bench peers tpu-check clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## make .venv; EXTRAS=cpu (default), gpu or tpu

OTHERS = $(filter-out $(INSTALLED),$(wildcard $(VENV)/.installed-*))

$(INSTALLED): setup.py constraints.txt
	@test -z '$(OTHERS)' || { echo 'error: $(OTHERS): another TensorFlow is installed there;' \
	  'remove $(VENV), or set VENV=' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable '.[$(EXTRAS),serve,demo,dev]'
	touch $@

demo: setup demo-images  ## draw the demo set, preprocess, train on the CPU, evaluate
	$(BIN)/python -m pipeline.main --gin_file=gin/demo_preprocess.gin
	$(BIN)/python -m trainer.main --gin_file=gin/demo.gin $(ARGS)

demo-images: setup
	$(BIN)/python -m demo.draw --output=data/demo-images

# A value for the shell, whatever is in it; and --flag=value where there is one.
quoted = '$(subst ','\'',$(1))'
flag = $(if $(2),--$(1)=$(call quoted,$(2)))

# Without INPUT: the demo set.
preprocess: setup $(if $(INPUT),,demo-images)  ## INPUT=folder or CSV, OUTPUT=folder [GIN=... RUNNER=... ARGS=...]
	$(BIN)/python -m pipeline.main \
	  $(call flag,gin_file,$(or $(GIN),$(if $(INPUT),,gin/demo_preprocess.gin))) \
	  $(call flag,input,$(INPUT)) $(call flag,output,$(OUTPUT)) \
	  $(call flag,runner,$(RUNNER)) $(ARGS)

train: setup  ## [GIN=gin/demo.gin DATA=folder MODEL=folder ARGS=...]
	$(BIN)/python -m trainer.main $(call flag,gin_file,$(or $(GIN),gin/demo.gin)) \
	  $(call flag,data_dir,$(DATA)) $(call flag,model_dir,$(MODEL)) $(ARGS)

# Embeddings, index and report are in the folder of the run, unless EMBEDDINGS=, INDEX= and OUTPUT=
# name other places.
RUN = $(or $(MODEL),runs/demo)
INDEX ?= $(RUN)/index

evaluate: setup  ## [MODEL=runs/demo DATA=folder ARGS=...]
	$(BIN)/python -m trainer.main --mode=evaluate \
	  $(call flag,model_dir,$(RUN)) $(call flag,data_dir,$(DATA)) $(ARGS)

export: setup  ## the best model as files that load without this project [MODEL=runs/demo ARGS=...]
	$(BIN)/python -m trainer.main --mode=export $(call flag,model_dir,$(RUN)) $(ARGS)

# Without GIN: the demo's model and data, into its run.
EMBEDDED = $(or $(MODEL),$(if $(GIN),,runs/demo))
embed: setup  ## MODEL=run, DATA=folder or IMAGES=folder, OUTPUT=folder [GIN=... RUNNER=... ARGS=...]
	$(BIN)/python -m pipeline.embed $(call flag,gin_file,$(GIN)) \
	  $(call flag,model_dir,$(EMBEDDED)) $(call flag,images,$(IMAGES)) \
	  $(call flag,data_dir,$(or $(DATA),$(if $(IMAGES)$(MODEL)$(GIN),,data/demo))) \
	  $(call flag,output,$(or $(OUTPUT),$(if $(EMBEDDED),$(EMBEDDED)/embeddings))) \
	  $(call flag,runner,$(RUNNER)) $(ARGS)

index: setup  ## [MODEL=runs/demo EMBEDDINGS=folder INDEX=folder ARGS=...]
	$(BIN)/python -m trainer.search build \
	  $(call flag,embeddings,$(or $(EMBEDDINGS),$(RUN)/embeddings)) \
	  $(call flag,index_dir,$(INDEX)) $(ARGS)

search: setup  ## IMAGES=image file or folder [MODEL=runs/demo INDEX=folder ARGS=...]
	$(BIN)/python -m trainer.search query $(call flag,index_dir,$(INDEX)) \
	  $(if $(IMAGES),$(call flag,model_dir,$(RUN)) $(call quoted,$(IMAGES))) $(ARGS)

report: setup  ## MODEL=run, DATA=folder [EMBEDDINGS=folder OUTPUT=file ARGS=...]
	$(BIN)/python -m trainer.report $(call flag,model_dir,$(RUN)) \
	  $(call flag,data_dir,$(or $(DATA),$(if $(MODEL),,data/demo))) \
	  $(call flag,embeddings,$(EMBEDDINGS)) $(call flag,output,$(OUTPUT)) $(ARGS)

serve: setup  ## a web page to try it on [MODEL=runs/demo INDEX=folder, DATA=folder or IMAGES=folder, ARGS=...]
	$(BIN)/python -m trainer.serve $(call flag,model_dir,$(RUN)) $(call flag,index_dir,$(INDEX)) \
	  $(call flag,data_dir,$(or $(DATA),$(if $(IMAGES)$(MODEL),,data/demo))) \
	  $(call flag,images,$(IMAGES)) $(ARGS)

test: setup  ## the tests but those that take minutes; no network, no accelerator
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: setup  ## those that take minutes
	$(BIN)/python -m pytest -n 2 -m slow $(ARGS)

lint: setup  ## what CI checks besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy tripletmill preprocessing pipeline trainer demo benchmarks

format: setup  ## bring the code into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## those benchmarks that need no data; docs/benchmarks.md has the command of each figure
	for name in images preprocess input mining train; do TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m benchmarks.$$name || exit; done

# TensorFlow 2.15 wants Python 3.11. PyPI's torch brings CUDA along; pip's own settings can name
# an index that has the CPU's.
peers: $(patsubst %,.peers/%/.installed,tfa torch)  ## other libraries' losses, which bench compares with

.peers/%/.installed: benchmarks/mining/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

# An environment of its own: jax and libtpu would bring 1.1 GB, and pins, next to TensorFlow.
TPU_CHECK = $(VENV)/tpu-check

$(TPU_CHECK)/.installed: setup.py
	$(PYTHON) -m venv $(TPU_CHECK)
	$(BIN)/python -c "from importlib.metadata import requires; \
	  print(*(r.split(';')[0] for r in requires('tripletmill') if 'tpu-check' in r), sep='\n')" \
	  > $(TPU_CHECK)/requirements.txt
	$(TPU_CHECK)/bin/python -m pip install --quiet --requirement $(TPU_CHECK)/requirements.txt
	touch $@

tpu-check: setup $(TPU_CHECK)/.installed  ## which batches fit a TPU v5e, compiled without one [ARGS=...]
	$(BIN)/python -m benchmarks.tpu_check --jax_python=$(TPU_CHECK)/bin/python $(ARGS)

clean:  ## remove caches and build products; data/, runs/ and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
