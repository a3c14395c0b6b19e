# Every target makes the environment first: with uv where it can be had, with plain pip where not.
.DEFAULT_GOAL := help
.PHONY: help compare compare-full teachers pages zoo families bench growth seeds bench-gpu origin mutants test test-all test-browser test-gpu test-oldest test-faults lint
export OMP_NUM_THREADS := 1

comma := ,
BIN := .venv/bin
# the first Python that is new enough
PYTHON := $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

help:  ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## *(.*)/  make \1\t\2/' | expand -t 20

compare: .venv/ready  ## train students alone and distilled on MNIST, and show what the teacher was worth (three minutes)
	$(BIN)/kd-lightning compare --config configs/compare/mnist.yaml

compare-full: .venv/ready  ## the same with the teachers' training, all images and tenfold rates (half an hour)
	$(BIN)/kd-lightning compare --config configs/compare/mnist_full.yaml

teachers: .venv/ready  ## train the packaged teachers again, and say how near the new ones come (a quarter of an hour)
	$(BIN)/kd-lightning compare --config configs/compare/teachers.yaml
	$(BIN)/python -m benchmarks.teachers

pages: .venv/ready  ## write docs/methods.md, the keys in docs/compare.md and the renames in CHANGELOG.md from the tree
	$(BIN)/python -m benchmarks.methods
	$(BIN)/python -m benchmarks.renames
	$(BIN)/python -m benchmarks.compare_keys

zoo: .venv/ready  ## train with every loss on 1,000 digits, and show what each was worth (about an hour)
	$(BIN)/kd-lightning compare --config configs/compare/zoo.yaml
	$(BIN)/python -m benchmarks.zoo

families: .venv/ready  ## train with the adversarial, cross-modal, graph, attention and data-free methods and their ablations, and show what each was worth (a night)
	$(foreach name,adversarial cross_modal modalities graph attention data_free,$(BIN)/kd-lightning compare --config configs/compare/$(name).yaml && $(BIN)/python -m benchmarks.families $(name) &&) true
	$(BIN)/kd-lightning compare --config configs/compare/colour.yaml && $(BIN)/python -m benchmarks.families colour --page data_free

bench: .venv/ready  ## measure what a step costs beside a bare loop's, other libraries' and, loss by loss, plain torch's (a quarter of an hour)
	$(BIN)/python -m benchmarks.speed
	$(BIN)/python -m benchmarks.peers
	$(BIN)/python -m benchmarks.losses

growth: .venv/ready  ## measure how distillation's cost grows with images, classes and the teacher, and draw it
	$(BIN)/python -m benchmarks.growth

seeds: .venv/ready  ## train with a hundred seeds, and count what overflowed and which classes died (an hour)
	$(BIN)/python -m benchmarks.seeds

bench-gpu: .venv/ready  ## measure, on a GPU, a distilled epoch beside a bare loop's
	$(BIN)/python -m benchmarks.gpu

origin: .venv/ready  ## reproduce the notebook that this project comes from, as it was, and explain its numbers
	$(BIN)/python -m benchmarks.origin --report

mutants: .venv/ready  ## change the losses and schedules one expression at a time, and list what no test notices (half an hour)
	$(BIN)/python -m benchmarks.mutants

test: .venv/ready  ## run the quick tests on two cores
	$(BIN)/pytest -n 2 --dist loadgroup -m "not slow and not browser" --max-memory 1792

test-all: .venv/foreign  ## run every test, minutes longer, those in other people's libraries included
	$(BIN)/pytest -n 2 --dist loadgroup -m "not browser"
	$(if $(shell command -v chromium),$(MAKE) test-browser,@echo "no chromium on the PATH: the tests of make test-browser were left out")

test-browser: .venv/ready  ## open pages and TensorBoard in Chromium, which apt-get install chromium installs, and check what they show
	$(BIN)/pytest -m browser tests

GPU_TESTS := tests/test_gpu.py tests/test_waiting.py tests/test_every_scheme.py tests/test_resume.py tests/speed/test_fast_loop.py

test-gpu: .venv/ready  ## run on a GPU what holds for every scheme and callback
	KD_TEST_ACCELERATOR=gpu $(BIN)/pytest -n 8 --dist loadgroup $(GPU_TESTS)

# What depends on a dependency's own behaviour: torch's arithmetic (losses, networks, doctests), Lightning's loops and their
# private names (callbacks, schemes, resume), jsonargparse's messages (the command line), scipy, matplotlib and tensorboard
# (statistics and report), a notebook's kernel, and the build backend. Left out are the runs of every configuration and of
# every scheme in two processes: they take many minutes and call nothing else.
OLDEST_TESTS := kd_lightning tests/losses tests/networks tests/callbacks tests/schemes tests/data tests/cli/test_cli.py tests/test_resume.py \
  tests/core/test_activations.py tests/core/test_terms.py tests/core/test_learner.py tests/weights/test_export.py tests/test_teacher.py tests/test_packaging.py \
  tests/compare/test_compare_statistics.py tests/compare/test_compare_report.py tests/compare/test_compare_engine.py \
  tests/compare/test_compare_worker.py

test-oldest: .venv-oldest/ready  ## run quick tests on Python 3.11 with the oldest dependencies that pyproject.toml allows
	.venv-oldest/bin/pytest -n 2 --dist loadgroup -m "not slow and not browser" $(OLDEST_TESTS)
	.venv-oldest/bin/pytest notebooks/02_temperature.ipynb

test-faults: .venv/ready  ## inject some 950 faults into runs of every family of schemes, and write what was lost into docs/reliability.md
	$(BIN)/python -m benchmarks.faults --report

lint: .venv/ready  ## check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# $(call install,extras): into the environment, with uv where there is one
define install
	if command -v uv >/dev/null || $(BIN)/pip install --quiet uv; then \
	  PATH="$$PWD/$(BIN):$$PATH" uv pip install --quiet --compile-bytecode --python $(BIN)/python -c requirements.lock -e '.[$(1)]'; \
	else \
	  $(BIN)/pip install --quiet -c requirements.lock -e '.[$(1)]'; \
	fi
	@touch $@
endef

.venv/ready: pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer on the PATH: install one first"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(call install,dev)

.venv/foreign: .venv/ready
	$(call install,dev$(comma)foreign)

# pip cannot resolve to the oldest versions, so uv is a must here
.venv-oldest/ready: pyproject.toml
	@command -v python3.11 >/dev/null || { echo "no python3.11 on the PATH, the oldest Python that pyproject.toml allows"; exit 1; }
	test -x .venv-oldest/bin/python || python3.11 -m venv .venv-oldest
	command -v uv >/dev/null || .venv-oldest/bin/pip install --quiet uv
	PATH="$$PWD/.venv-oldest/bin:$$PATH" uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct -e '.[dev]'
	@touch $@
