# The commands of the course; `make` lists them. Everything is installed in .venv, once.
PYTHON ?= python3
# The versions of the last green run.  `make CONSTRAINTS= VENV=.venv-newest lab` takes the newest instead.
CONSTRAINTS := constraints.txt
VENV := .venv
STAMP := $(VENV)/.setup-done
LOG := build/setup.log
BEGUN := build/setup-begun$(VENV)
IN_VENV := $(VENV)/bin/python -m
# How many run tests at once, each with one thread; where a test asks for two, they wait without holding their core.
PROCESSES := 2
IN_PARALLEL := env OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(IN_VENV) pytest -n $(PROCESSES)

# Passed on to JupyterLab: make lab LAB_OPTIONS="--no-browser --port=9999"
LAB_OPTIONS :=
# With a folder that make wheelhouse has filled, everything is installed from it and no network is asked.
WHEELHOUSE :=

# With a Matplotlib backend of the user's own choice the figures would not appear in the notebooks.
unexport MPLBACKEND

.DEFAULT_GOAL := help
.PHONY: help tour lab test test-faults test-newest lint notebooks bench bench-peers setup wheelhouse

help:
	@echo "make tour       run every notebook without a browser and keep the results as HTML pages"
	@echo "make lab        open your copy of the notebooks, my-notebooks/, in JupyterLab; it is never overwritten"
	@echo "make test       unit tests, every notebook against its stored outputs, lint"
	@echo "make test-faults  kills, full disks and damaged files, 100 of each kind; FAULTS_TRIALS=..., FAULTS_SEED=..."
	@echo "make test-newest  the same with the newest packages instead of those in constraints.txt, in .venv-newest"
	@echo "make lint       ruff and mypy alone: rules, format, types"
	@echo "make notebooks  run every notebook and store its outputs in it"
	@echo "make bench      measure what influences and a MetaSP step cost; results go to data/results/bench"
	@echo "make bench-peers  the toy's influences by other libraries beside ours, in .venv-peers; not part of make test"
	@echo "make wheelhouse  all packages as files in build/wheelhouse, for machines of this kind without a network; there:"
	@echo "                 make tour WHEELHOUSE=/path/to/wheelhouse"
	@echo "All of them set up .venv first; PYTHON=... picks the interpreter for that (3.11 or newer)."

tour: $(STAMP)
	@$(IN_VENV) metasp_lite tour

lab: $(STAMP)
	@$(IN_VENV) metasp_lite lab -- $(LAB_OPTIONS)

notebooks: $(STAMP)
	@METASP_PROFILE=lite $(IN_VENV) metasp_lite tour --store

bench: $(STAMP)
	@$(IN_VENV) metasp_lite bench

# pyDVL asks for NumPy below 2, and does without; what its influences import is named here instead.
bench-peers:
	@$(MAKE) setup VENV=.venv-peers
	@.venv-peers/bin/python -m pip install -q $(CONSTRAINTS:%=-c %) captum dattri kronfluence \
		pyDeprecate more-itertools zarr "dask[distributed]"
	@.venv-peers/bin/python -m pip install -q --no-deps pyDVL
	@.venv-peers/bin/python -m metasp_lite bench peers

lint: $(STAMP)
	@$(IN_VENV) ruff check . && $(IN_VENV) ruff format --check . && $(IN_VENV) mypy

# Every stage runs, whatever the one before it said; the last line names those that failed.
# The stored outputs are the lite profile's; all cells of a notebook go to one process (loadfile).
test: $(STAMP)
	@failed=; \
	stage() { name=$$1; shift; echo "== $$name"; "$$@" || failed="$$failed, $$name"; }; \
	stage "unit and property tests" $(IN_PARALLEL) --dist worksteal; \
	stage "notebooks" env METASP_PROFILE=lite $(IN_PARALLEL) --dist loadfile \
		--nbval --nbval-current-env --nbval-cell-timeout 300 notebooks; \
	stage "lint: rules" $(IN_VENV) ruff check .; \
	stage "lint: format" $(IN_VENV) ruff format --check .; \
	stage "lint: types" $(IN_VENV) mypy; \
	if [ -n "$$failed" ]; then echo "FAILED: $${failed#, }" >&2; exit 1; fi; \
	echo "all stages passed"

# More of the trials of which `make test` has a few of each kind.
test-faults: $(STAMP)
	@FAULTS_TRIALS=$${FAULTS_TRIALS:-100} $(IN_PARALLEL) --dist worksteal tests/faults

test-newest:
	@rm -rf .venv-newest
	@$(MAKE) test VENV=.venv-newest CONSTRAINTS=

# With what building the package itself asks for; an installation from the folder alone finds it there.
wheelhouse: $(STAMP)
	@mkdir -p build/wheelhouse
	@$(IN_VENV) pip download -q -d build/wheelhouse $(CONSTRAINTS:%=-c %) "setuptools>=77.0.3" ".[test]"
	@du -sh build/wheelhouse

setup: $(STAMP)

# The stamp is written last and says where the checkout lay: an interrupted set-up, a new pyproject.toml or a moved
# folder (the package is installed in place) sets up again. A venv that a set-up left unfinished is made anew.
ifneq "$(shell test -x $(VENV)/bin/python && cat $(STAMP) 2>/dev/null)" "$(CURDIR)"
.PHONY: $(STAMP)
endif

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@fail() { echo "metasp_lite: $$1" >&2; exit 1; }; \
	command -v "$(PYTHON)" >/dev/null 2>&1 || \
		fail "there is no $(PYTHON) here: install Python 3.11 or newer, or name one with PYTHON=/path/to/python3"; \
	version=$$("$(PYTHON)" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); \
	case "$$version" in \
		3.1[1-9] | 3.[2-9][0-9]) ;; \
		*) fail "$(PYTHON) is not Python 3.11 or newer: install one, or name one with PYTHON=/path/to/python3" ;; \
	esac; \
	"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || \
		fail "$(PYTHON) lacks the venv module: install it (on Debian and Ubuntu: apt install python3-venv)"; \
	echo "setting up $(VENV) (a few minutes, once) ..."; \
	mkdir -p build && rm -f $(STAMP) || fail "cannot write in $(CURDIR): check its permissions"; \
	again=; if [ -e $(BEGUN) ]; then again=--clear; fi; \
	touch $(BEGUN); \
	"$(PYTHON)" -m venv $$again $(VENV) >$(LOG) 2>&1 || fail "cannot make $(VENV): see $(LOG)"; \
	if ! $(IN_VENV) pip install $(WHEELHOUSE:%=--no-index --find-links %) -e ".[test]" $(CONSTRAINTS:%=-c %) >>$(LOG) 2>&1; then \
		if grep -qiE 'NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Connection(Reset|Refused)|name resolution|unreachable|from versions: none' $(LOG); then \
			fail "cannot download the packages: check the network, then run the same command again (details: $(LOG))"; \
		elif grep -q 'No space left on device' $(LOG); then \
			fail "the disk is full: the packages need about 7 GB (details: $(LOG))"; \
		fi; \
		fail "cannot install the packages: see $(LOG)"; \
	fi; \
	echo "$(CURDIR)" >$(STAMP) && rm -f $(BEGUN)
