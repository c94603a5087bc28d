# make run       teach <wood-toy> to the bundled model and draw it in new places
# make test      all that a change needs: lint, types, tests, notebooks;  make quick: what takes seconds
# make test-all  and what a release needs: other Pythons, Colab's versions, a browser, known vulnerabilities
# make setup     .venv/ with the versions of constraints.txt; the others call it
# All that is made lies in .venv/, build/ and runs/; each may be deleted at any time.

SHELL       := bash
.SHELLFLAGS := -o pipefail -c

PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY     := .venv/bin/python
# one thread each: two workers with two threads each would wait for one another
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist worksteal --durations 20 --durations-min 5
PRODUCT := --editable '.[heif,notebooks]'
OTHERS := --editable '.[test,browser,book,8bit,flax,benchmarks]'
# $(call install,ARGUMENTS): installs the pinned versions and compiles them, so that no first import is slow; prints
# large downloads, how long each part took, and what goes wrong
install = $(PY) .ci/install --compile-bytecode --constraint constraints.txt $(1) 2>&1 \
    | awk '!/^ [-+~] |^ *(Building|Built|Downloaded|Uninstalled|Downloading .*[ (][0-9]\.[0-9]MiB.) / { print "    " $$0; fflush() }'

OVERLAYS := transformers-4.57 colab invokeai
export TIUTILS_TRANSFORMERS4 := $(CURDIR)/build/transformers-4.57
export TIUTILS_COLAB := $(CURDIR)/build/colab
export TIUTILS_INVOKEAI := $(CURDIR)/build/invokeai

.PHONY: setup run test tested test-all lint audit types quick tests release fuzz bench notebooks book colab browser overlays clean
.DELETE_ON_ERROR:

setup: .venv/installed

# What `make run` and the notebooks need; then what only tests and JAX need.
.venv/product: pyproject.toml constraints.txt .ci/install
	@echo "Installing the versions of constraints.txt into .venv/ (a minute or two, and the downloads, once):"
	@test -x .venv/bin/pip || $(PYTHON) -m venv .venv
	@$(PY) -m pip install --quiet --constraint constraints.txt uv
	@echo "1/2 tiutils with PyTorch and diffusers, and Jupyter (once downloaded, they are compiled: half a minute)"
	@$(call install,$(PRODUCT))
	@touch $@

.venv/installed: .venv/product
	@echo "2/2 JAX, and what the tests need"
	@$(call install,$(OTHERS))
	@touch $@

run: .venv/product
	$(PY) -m tiutils train --pretrained_model_name_or_path data/tiny-sd \
	    --train_data_dir data/concepts/wood-toy --placeholder_token '<wood-toy>' --initializer_token toy \
	    --output_dir runs/wood-toy --max_train_steps 300 --early_stopping --early_stopping_window 100 \
	    --resume_from_checkpoint latest
	$(PY) -m tiutils evaluate runs/wood-toy

# Each line is a stage; .ci/stage prints how long it took, and in the end the table of them all.
test: tested
	@.ci/stage --table

tested:
	@rm -f build/stages
	@.ci/stage set-up $(MAKE) setup
	@.ci/stage lint $(MAKE) lint
	@.ci/stage types $(MAKE) types
	@.ci/stage tests $(MAKE) tests
	@.ci/stage notebooks $(MAKE) notebooks

test-all: tested
	@.ci/stage overlays $(MAKE) overlays
	@.ci/stage audit $(MAKE) audit
	@.ci/stage release $(MAKE) release
	@.ci/stage colab $(MAKE) colab
	@.ci/stage browser $(MAKE) browser
	@.ci/stage --within 2800 python-3.13 .ci/quick-under 3.13
	@.ci/stage --within 2800 python-3.12 .ci/quick-under 3.12
	@.ci/stage --table

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

audit: setup
	$(PY) .ci/audit

types: setup
	$(PY) -m mypy

quick: setup
	$(PYTEST) -m "not slow"

# The quick ones and those that take longer, in one go.
tests: setup
	$(PYTEST) -m "not release" --ignore tests/browser

# Slow tests that few changes can break, or that a faster one stands for: other versions, rehearsals, long runs.
release: setup overlays
	$(PYTEST) -m release --ignore tests/colab

# The property tests, ten times, each time with examples never tried before.
fuzz: setup
	for round in 1 2 3 4 5 6 7 8 9 10; do $(PYTEST) -m hypothesis --hypothesis-profile default || exit; done

# The benchmarks that a CPU makes in minutes; with DIFFUSERS=CHECKOUT the comparison with its script, too.
bench: setup
	-$(PY) -m benchmarks.step_cost --switches channels_last bf16
	$(PY) -m benchmarks.step_growth
	$(PY) -m benchmarks.memory
	$(PY) -m benchmarks.processes
	$(if $(DIFFUSERS),-$(PY) -m benchmarks.against_diffusers --diffusers $(DIFFUSERS))

notebooks: setup
	$(PY) notebooks/check.py

# The course as a static site in build/book/, of what is stored: nothing is executed. A warning is an error.
book: setup
	rm -rf build/book
	$(PY) -m sphinx --quiet --fail-on-warning --keep-going -c book . build/book

# Under Colab's versions, whose own deprecations are not ours: the quick tests of each module that imports one of those
# packages (tests/colab/test_requirements.py holds the list to that), of models and files, and the golden values of NumPy
# and Pillow. Then the notebooks as Colab runs them.
ON_COLAB := colab course/test_attention.py course/test_live.py course/test_widgets.py evaluation/test_clip.py \
    flax/test_flax_models.py io/test_embeddings.py io/test_hub.py io/test_other_readers.py io/test_pictures.py \
    io/test_pretrained.py io/test_progress.py io/test_single_file.py publishing runs/test_cuda_graph.py \
    runs/test_memory.py runs/test_run.py test_batches.py test_bundled_model.py test_concept.py test_inference.py \
    test_models.py test_sd2.py test_sdxl.py test_token_embedding.py test_tokenizer.py test_training.py
colab: setup overlays
	PYTHONPATH=$(CURDIR)/build/colab $(PYTEST) -m "not slow" -W ignore::DeprecationWarning $(ON_COLAB:%=tests/%)
	$(PYTEST) -m release tests/colab

# JupyterLab and the book in headless Chromium; screenshots in build/browser/.
browser: setup book
	.ci/chromium
	rm -rf build/browser
	$(PYTEST) tests/browser

# Other versions of a few packages, to be laid over .venv/ through PYTHONPATH.
overlays: $(OVERLAYS:%=build/%/installed)

build/%/installed: tests/versions/%.txt | .venv/installed
	rm -rf $(@D)
	@echo "Installing build/$*/ ..."
	@$(PY) .ci/install --quiet --compile-bytecode --no-deps --target $(@D) --requirement $<
	@touch $@

clean:
	rm -rf .venv build
