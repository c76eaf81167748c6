# `make demo` and `make test` need Python 3.10 or later and nothing else: each makes .venv, installs into it once, and runs.
# `make PYTHON=/path/to/python3 demo` chooses the Python.

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?=
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install -qq -c constraints.txt

.PHONY: demo test test-slow lint format docs clean help
.NOTPARALLEL:

help:
	@echo "make demo       train on scanned digits and write a report (about two minutes after the installation)"
	@echo "make test       run the tests, one process for each processor"
	@echo "make test-slow  run those that \`make test\` leaves out, since each takes long"
	@echo "make lint       run ruff, pyright and import-linter"
	@echo "make format     let ruff rewrite the sources"
	@echo "make docs       build the documentation into site/"
	@echo "make clean      remove .venv, dist and caches (runs/ stays)"

demo: $(VENV)/installed-train
	@$(BIN)/srattn train --data digits

# A file of tests stays in one process, so that what it trains once is trained once.
PYTEST := $(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: $(VENV)/installed-dev
	@$(PYTEST) -m "not slow"

test-slow: $(VENV)/installed-dev
	@$(PYTEST) -m slow

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed-dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

clean:
	rm -rf $(VENV) dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# The stamps make the second run start at once; a change of either file installs again.
$(VENV)/installed-train: pyproject.toml constraints.txt $(VENV)/pyvenv.cfg
	@echo "Installing srattn into $(VENV); the first time takes some minutes."
	@$(PIP) -e ".[train]"
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt $(VENV)/pyvenv.cfg
	@echo "Installing srattn and its development tools into $(VENV); the first time takes some minutes."
	@$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/installed-train

# A name on the path may be an older Python or a shim without one, so each candidate is asked.
$(VENV)/pyvenv.cfg:
	@found=; for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.10 python3.14 python; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "srattn needs Python 3.10 or later, and none was found; install one, or name it: make PYTHON=/path/to/python3" >&2; \
	  exit 1; \
	fi; \
	echo "Making $(VENV) with $$("$$found" --version)."; \
	"$$found" -m venv --clear $(VENV) || { \
	  rm -rf $(VENV); \
	  echo "$$found cannot make a virtual environment; on Debian and Ubuntu: sudo apt install python3-venv" >&2; \
	  exit 1; \
	}
