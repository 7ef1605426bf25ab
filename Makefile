# The commands for users and developers. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
# By default, the variant of TensorFlow that is installed stays. A new environment gets the CPU's.
EXTRAS ?= $(or $(patsubst $(VENV)/.installed-%,%,$(firstword $(wildcard $(VENV)/.installed-*))),cpu)
BIN = $(VENV)/bin
# constraints.txt has the versions for the CPU. TensorFlow for GPUs and TPUs needs other versions.
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

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED)  ## install into .venv [EXTRAS=cpu (default), gpu or tpu]

OTHERS = $(filter-out $(INSTALLED),$(wildcard $(VENV)/.installed-*))

$(INSTALLED): setup.py constraints.txt
	@test -z '$(OTHERS)' || { echo 'error: $(OTHERS): another TensorFlow is installed there;' \
	  'remove $(VENV), or set VENV=' >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	PYTHONWARNINGS=ignore $(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable '.[$(EXTRAS),serve,demo,dev]'
	touch $@

demo: setup demo-images  ## draw the demo set, preprocess it, train on the CPU and evaluate [ARGS=...]
	$(BIN)/python -m pipeline.main --gin_file=gin/demo_preprocess.gin
	$(BIN)/python -m trainer.main --gin_file=gin/demo.gin $(ARGS)

demo-images: setup
	$(BIN)/python -m demo.draw --output=data/demo-images

# `quoted` quotes a value for the shell, whatever it contains. `flag` gives --name=value, or nothing
# if there is no value.
quoted = '$(subst ','\'',$(1))'
flag = $(if $(2),--$(1)=$(call quoted,$(2)))

# Without INPUT, the demo set is preprocessed.
preprocess: setup $(if $(INPUT),,demo-images)  ## images to a data set: INPUT=folder or manifest, OUTPUT=folder [GIN=file RUNNER=... ARGS=...]
	$(BIN)/python -m pipeline.main \
	  $(call flag,gin_file,$(or $(GIN),$(if $(INPUT),,gin/demo_preprocess.gin))) \
	  $(call flag,input,$(INPUT)) $(call flag,output,$(OUTPUT)) \
	  $(call flag,runner,$(RUNNER)) $(ARGS)

train: setup  ## train a model [GIN=gin/demo.gin DATA=folder MODEL=folder ARGS=...]
	$(BIN)/python -m trainer.main $(call flag,gin_file,$(or $(GIN),gin/demo.gin)) \
	  $(call flag,data_dir,$(DATA)) $(call flag,model_dir,$(MODEL)) $(ARGS)

# Embeddings, index and report are in the folder of their run, unless EMBEDDINGS=, INDEX= and
# OUTPUT= name other places.
RUN = $(or $(MODEL),runs/demo)
INDEX ?= $(RUN)/index

evaluate: setup  ## measure retrieval with the trained model [MODEL=runs/demo DATA=folder ARGS=...]
	$(BIN)/python -m trainer.main --mode=evaluate \
	  $(call flag,model_dir,$(RUN)) $(call flag,data_dir,$(DATA)) $(ARGS)

export: setup  ## write the best model as files that load without this project [MODEL=runs/demo ARGS=...]
	$(BIN)/python -m trainer.main --mode=export $(call flag,model_dir,$(RUN)) $(ARGS)

# Without MODEL and GIN, the demo's model embeds the demo's data into the folder of the demo's run.
EMBEDDED = $(or $(MODEL),$(if $(GIN),,runs/demo))
embed: setup  ## images to embeddings: MODEL=run, DATA=folder or IMAGES=folder, OUTPUT=folder [GIN=file RUNNER=... ARGS=...]
	$(BIN)/python -m pipeline.embed $(call flag,gin_file,$(GIN)) \
	  $(call flag,model_dir,$(EMBEDDED)) $(call flag,images,$(IMAGES)) \
	  $(call flag,data_dir,$(or $(DATA),$(if $(IMAGES)$(MODEL)$(GIN),,data/demo))) \
	  $(call flag,output,$(or $(OUTPUT),$(if $(EMBEDDED),$(EMBEDDED)/embeddings))) \
	  $(call flag,runner,$(RUNNER)) $(ARGS)

index: setup  ## build a search index [MODEL=runs/demo EMBEDDINGS=folder INDEX=folder ARGS=...]
	$(BIN)/python -m trainer.search build \
	  $(call flag,embeddings,$(or $(EMBEDDINGS),$(RUN)/embeddings)) \
	  $(call flag,index_dir,$(INDEX)) $(ARGS)

search: setup  ## find similar images: IMAGES=image file or folder [MODEL=runs/demo INDEX=folder ARGS=...]
	$(BIN)/python -m trainer.search query $(call flag,index_dir,$(INDEX)) \
	  $(if $(IMAGES),$(call flag,model_dir,$(RUN)) $(call quoted,$(IMAGES))) $(ARGS)

report: setup  ## write an HTML report: MODEL=run, DATA=folder [EMBEDDINGS=folder OUTPUT=file ARGS=...]
	$(BIN)/python -m trainer.report $(call flag,model_dir,$(RUN)) \
	  $(call flag,data_dir,$(or $(DATA),$(if $(MODEL),,data/demo))) \
	  $(call flag,embeddings,$(EMBEDDINGS)) $(call flag,output,$(OUTPUT)) $(ARGS)

serve: setup  ## start a web page for searching [MODEL=runs/demo INDEX=folder, DATA=folder or IMAGES=folder, ARGS=...]
	$(BIN)/python -m trainer.serve $(call flag,model_dir,$(RUN)) $(call flag,index_dir,$(INDEX)) \
	  $(call flag,data_dir,$(or $(DATA),$(if $(IMAGES)$(MODEL),,data/demo))) \
	  $(call flag,images,$(IMAGES)) $(ARGS)

test: setup  ## run all tests except slow ones, without network or accelerator [ARGS=...]
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-slow: setup  ## run the slow tests, which take minutes each [ARGS=...]
	$(BIN)/python -m pytest -n 2 -m slow $(ARGS)

lint: setup  ## check style and types, as CI does besides the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy tripletmill preprocessing pipeline trainer demo benchmarks tools

format: setup  ## format the code and fix what ruff can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## run the benchmarks that need no data (docs/benchmarks.md has the command of each figure)
	for name in images preprocess input mining train; do TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/python -m benchmarks.$$name || exit; done

# TensorFlow 2.15 needs Python 3.11. The torch wheel on PyPI includes CUDA. To get the CPU wheel, set
# a package index that has it in pip's own settings.
peers: $(patsubst %,.peers/%/.installed,tfa torch)  ## install other libraries, whose losses `make bench` compares with ours

.peers/%/.installed: benchmarks/mining/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade pip
	$(@D)/bin/python -m pip install --quiet --requirement $<
	touch $@

# This is a separate environment, since jax and libtpu take 1.1 GB and would bring their version pins
# into TensorFlow's environment.
TPU_CHECK = $(VENV)/tpu-check

$(TPU_CHECK)/.installed: setup.py
	$(PYTHON) -m venv $(TPU_CHECK)
	$(BIN)/python -c "from importlib.metadata import requires; \
	  print(*(r.split(';')[0] for r in requires('tripletmill') if 'tpu-check' in r), sep='\n')" \
	  > $(TPU_CHECK)/requirements.txt
	$(TPU_CHECK)/bin/python -m pip install --quiet --requirement $(TPU_CHECK)/requirements.txt
	touch $@

tpu-check: setup $(TPU_CHECK)/.installed  ## show which batches fit a TPU v5e, by compiling for it without having one [ARGS=...]
	$(BIN)/python -m tools.tpu_check --jax_python=$(TPU_CHECK)/bin/python $(ARGS)

clean:  ## remove caches and build products, but not data/, runs/ and .venv
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
