# `make test` and `make demo` need nothing but Linux, Python 3.10 to 3.12 and a C++ compiler; `make help` tells the rest.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install check test test-unit test-gpu test-reliability demo app tutorial study bench bench-gpu lint docs release clean

PYTHON ?= python3
MMCV ?= compiled
LITE := $(filter lite,$(MMCV))
VENV ?= $(if $(LITE),.venv-lite,.venv)
TORCH_SPEC ?= torch==2.13.0
TORCH_ARGS ?=
MMCV_ARGS ?=
TASK ?= $(if $(LITE),segmentation,detection)
BACKBONE ?= van-lska
ATTENTION ?= none
APP_ARGS ?=
PYTEST_ARGS ?=
DOCS ?= html
STUDY ?= full
BENCH_DATA ?= $(wildcard ../shared/data/coco_mini)
MAX_JOBS ?= $(shell nproc)
export MAX_JOBS

BIN := $(VENV)/bin
# Without build isolation: mmcv compiles against the torch that is installed, the others use the pinned setuptools.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation \
	--constraint requirements/constraints.txt
BUILD_LOG := $(VENV)/mmcv-build.log
# One stamp for all that decides what is installed: a run after a change of pins or of torch installs again.
KEY := $(shell { echo '$(TORCH_SPEC) $(TORCH_ARGS) $(MMCV_ARGS) $(MMCV)'; \
	cat setup.cfg setup.py requirements/constraints.txt; } | cksum | cut -d' ' -f1)
READY := $(VENV)/.ready-$(KEY)
# The page to try models needs more, which is installed for it and for its tests alone.
APP_READY := $(READY)-app

say = @printf '==> %s\n'
fail = { printf '\nerror: %s\n' $(1) >&2; exit 1; }

define HELP
make test                 install what is missing, run all tests
make test PYTEST_ARGS=... the same with more options for pytest, e.g. "-m 'not slow'" or "-k van"
make test-unit            the same without what trains, starts processes or takes long; minutes on two cores
make test-gpu             install what is missing, and run on a CUDA device what only that can show, ten minutes a step:
                          tests, compute-sanitizer, two benchmarks; results in work_dirs/gpu. tests/check_gpu.sh
                          --help tells the steps, and how to run them without installing
make test-reliability     install what is missing, end trainings in some twenty ways and let them go on: about ten minutes
make demo                 install what is missing, train and evaluate a small Mask R-CNN on the CPU
make demo TASK=retinanet  the same for RetinaNet; TASK=segmentation for Semantic FPN
make demo MMCV=lite       Semantic FPN without a compiler: mmcv-lite in place of mmcv, installed into .venv-lite
make demo BACKBONE=...    another backbone: ghostnetv2 or container-light
make demo ATTENTION=...   attention on every level of the pyramid: eca or context-aggregation
make app                  install what is missing, and open a page to try models on images: prediction, receptive field
                          and gate, before and after training; APP_ARGS="--model CONFIG CHECKPOINT" adds yours
make tutorial             install what is missing, run demo/tutorial.ipynb, and keep what its cells put out
make bench                install what is missing, measure ours against the official order on the CPU, and rewrite
                          the tables and pictures of docs/benchmarks.md; about five minutes on two cores
make bench-gpu            the same for its GPU tables, on a machine with a CUDA device; hours
make study                install what is missing, train some 75 small models, and judge the claims of the LSKA paper by them:
                          rewrites docs/study.md; hours on two cores. STUDY=quick trains 33 for fewer iterations
make lint                 ruff and codespell
make docs                 build the documentation into work_dirs/docs; DOCS=linkcheck follows its links to other sites
make release              build wheel and source archive into dist/, check them, and try each in a fresh environment
make install              only install
make check                say what is installed, and what is wrong with it
make clean                remove $(VENV) and everything else that was made here, except work_dirs

Everything is installed into $(VENV). The first time, compiling mmcv takes about 5 minutes of processor time where the
compiler is GCC, which reads PyTorch's headers once for all files, and four times as much elsewhere; pip caches it.
MMCV=lite compiles nothing.

PYTHON=$(PYTHON)            Python 3.10, 3.11 or 3.12 that $(VENV) is made from
TORCH_SPEC=$(TORCH_SPEC) the PyTorch to install, e.g. TORCH_SPEC=torch==2.12.0
TORCH_ARGS=               more options for pip when it installs PyTorch. PyPI offers the CUDA build, of several GB;
                          without a GPU this saves most of it: TORCH_SPEC=torch==2.13.0+cpu
                          TORCH_ARGS='--extra-index-url https://download.pytorch.org/whl/cpu'
MMCV=compiled             or lite, for install, check and demo: no compiled operators, hence segmentation only
MMCV_ARGS=                more options for pip when it installs mmcv, e.g. --find-links URL of a ready wheel
BENCH_DATA=               folder of photographs in COCO's layout whose evaluation make bench measures as well
MAX_JOBS=$(MAX_JOBS)                how many files of mmcv to compile at once
endef
export HELP

ifeq ($(filter compiled lite,$(MMCV)),)
$(error MMCV=$(MMCV) is neither compiled nor lite)
endif
ifneq ($(LITE),)
ifneq ($(filter-out help install check demo clean,$(MAKECMDGOALS)),)
$(error MMCV=lite is for make install, check and demo; the tests and the rest need mmcv with its operators)
endif
endif

help:
	@printf '%s\n' "$$HELP"

install: $(READY)

$(READY): | $(BIN)/python
	@rm -f $(VENV)/.ready-*
	$(say) 'Installing the build tools'
	@$(PIP) --quiet pip setuptools wheel packaging ninja numpy || $(call fail,$(NETWORK_HINT))
	$(say) 'Installing $(TORCH_SPEC) (200 MB for the CPU, several GB with CUDA)'
	@$(PIP) --quiet $(TORCH_ARGS) '$(TORCH_SPEC)' || $(call fail,$(TORCH_HINT))
ifneq ($(LITE),)
	$(say) 'Installing mmengine, mmseg and mmlska'
	@PYTHONWARNINGS=ignore $(PIP) --quiet --editable '.[lite,demo]' || $(call fail,$(NETWORK_HINT))
	$(say) 'Installing mmcv-lite, which has no compiled operators'
	@# The original mmengine that it asks for would overwrite the maintained one. Last, for pip complains of its absence.
	@$(PIP) --quiet --no-deps mmcv-lite || $(call fail,$(NETWORK_HINT))
else
	$(say) 'Installing mmcv. Compiling it takes about 5 minutes of processor time with GCC, once: pip caches the result.'
	@headers=$$(mktemp -d); trap 'rm -rf "$$headers"' EXIT; $(PRECOMPILING) \
		$(PIP) --verbose --force-reinstall --no-deps "$(MMCV_CACHE)" $(MMCV_ARGS) onedl-mmcv 2>&1 | tee $(BUILD_LOG) \
		| awk '/^ *\[[0-9]+\/[0-9]+\]/ { printf "\r    compiled %s ", $$1; fflush(); n++ } \
			/^ *precompiled header:/ { printf "\r%s\n", $$0; fflush() } END { if (n) print "" }' \
		|| { tail -n 30 $(BUILD_LOG) >&2; $(call fail,$(MMCV_HINT)); }
	$(say) 'Installing mmengine, mmdet, mmseg, mmlska and the development tools'
	@# setuptools warns about every editable installation.
	@PYTHONWARNINGS=ignore $(PIP) --quiet --editable '.[onedl,demo,dev,docs]' || $(call fail,$(NETWORK_HINT))
endif
	@# Two of the packages above ask for two builds of OpenCV, which overwrite each other. The last one stays, and only the
	@# headless one works on a machine without libGL.
	@$(PIP) --quiet --force-reinstall --no-deps opencv-python-headless || $(call fail,$(NETWORK_HINT))
	$(say) 'Checking'
	@$(BIN)/python -m mmlska check
	@touch $@

$(APP_READY): $(READY)
	$(say) 'Installing Gradio'
	@PYTHONWARNINGS=ignore $(PIP) --quiet --editable '.[app]' || $(call fail,$(NETWORK_HINT))
	@touch $@

$(BIN)/python:
	@command -v '$(PYTHON)' > /dev/null || $(call fail,'there is no $(PYTHON); name one: make ... PYTHON=python3.11')
	@'$(PYTHON)' -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || $(call fail,$(PYTHON_HINT))
	$(say) "Making $(VENV) with $$('$(PYTHON)' --version)"
	@'$(PYTHON)' -m venv $(VENV) || { rm -rf $(VENV); $(call fail,\
		'no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv'); }

# A wheel that was compiled for another build of torch does not load, so that each build of torch has a cache of its own.
MMCV_CACHE = $$(cache=$$($(BIN)/python -m pip cache dir 2> /dev/null) && $(BIN)/python -c "import torch; \
	device = 'cuda' if torch.cuda.is_available() else 'cpu'; \
	print(f'--cache-dir=$$cache/mmlska/torch-{torch.__version__}-{device}')" || echo --no-cache-dir)

# Most of the time goes into PyTorch's headers, which nearly all files of mmcv begin with, and some into symbols for a debugger.
# The compiler lies in a folder of its own, whose name has no blank in it, since it is split into words.
PRECOMPILING = ln -s '$(CURDIR)/requirements/precompiling_cxx.sh' "$$headers/c++"; \
	PRECOMPILE_HEADERS='torch/types.h functional map vector' PRECOMPILE_CXX="$${CXX:-c++}" \
	CXX="$$headers/c++" CFLAGS="$${CFLAGS:-} -g0"

PYTHON_HINT = "$(PYTHON) is $$('$(PYTHON)' --version 2>&1), but 3.10, 3.11 or 3.12 is needed: make ... PYTHON=python3.11"
NETWORK_HINT = 'pip failed (see above). Is the package index reachable? Run the same command again: it goes on from here.'
TORCH_HINT = '$(TORCH_SPEC) could not be installed (see above). Choose a version that exists for this Python: \
	make ... TORCH_SPEC=torch==2.12.0'
MMCV_HINT = 'mmcv could not be compiled (see above; all of it is in $(BUILD_LOG)). It needs a C++17 compiler and the \
	Python headers (Debian and Ubuntu: apt install build-essential python3-dev), about 2 GB of memory for each job (MAX_JOBS=1 \
	takes least), and beside a GPU the CUDA toolkit (nvcc) of the version of torch. Ready wheels: see the README.'

check: $(READY)
	@$(BIN)/python -m mmlska check

# More than one thread in each of the workers only makes them wait for each other. Each worker gets one half of the tests in
# order, so that what several tests share is made once, and takes over from the other when its own are done.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
test: $(APP_READY)
	@$(PYTEST) $(PYTEST_ARGS)

test-unit: $(READY)
	@$(PYTEST) -m 'not slow' $(PYTEST_ARGS)

test-gpu: $(READY)
	@PYTHON=$(BIN)/python tests/check_gpu.sh

test-reliability: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -v tests/reliability/kills.py

demo: $(READY)
	@$(BIN)/python demo/train_demo.py --task '$(TASK)' --backbone '$(BACKBONE)' --attention '$(ATTENTION)'

app: $(APP_READY)
	@$(BIN)/python demo/app.py $(APP_ARGS)

tutorial: $(READY)
	@$(BIN)/python tools/misc/run_tutorial.py

# Half of the machine stays free for everything else: all of it is measured in one thread.
BENCH = OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks
bench: $(READY)
	@$(BENCH) suite cpu $(if $(BENCH_DATA),--data '$(BENCH_DATA)') --docs docs/benchmarks.md --json work_dirs/benchmark/cpu.json
	@$(BENCH) sweep layer --shape 1 64 64 64 --rounds 7 --max-seconds 0.5 --against kernel-size --plot docs/images/time_against_kernel_size.png
	@$(BENCH) sweep layer --kernel-size 23 --rounds 7 --max-seconds 2 --against input-size --plot docs/images/time_against_input_size.png

study: $(READY)
	@$(BIN)/python -W ignore -m benchmarks.study --scale '$(STUDY)'

bench-gpu: $(READY)
	@$(BENCH) suite gpu --docs docs/benchmarks.md --json work_dirs/benchmark/gpu.json

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/codespell

docs: $(READY)
	@$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder $(DOCS) docs work_dirs/docs/$(DOCS)
	$(say) 'It is in work_dirs/docs/$(DOCS)'

release: $(READY)
	@$(PIP) --quiet build twine
	@tools/misc/release.sh $(BIN)/python

clean:
	rm -rf $(VENV) build dist *.egg-info mmlska/.mim .pytest_cache .ruff_cache
