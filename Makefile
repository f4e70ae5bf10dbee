# Two commands for a newcomer: `make demo` and `make test`. Each sets up what it needs by itself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUTPUT ?= demo-output
CORPUS ?= embedded

.PHONY: demo test fuzz lint docs docs-build riva-check compat-check clean

# torch first and from the constraints: left to itself, pip takes the newest. PIP_EXTRA_INDEX_URL may name PyTorch's index of CPU wheels.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/nemo-tutornet demo --corpus "$(CORPUS)" --output "$(OUTPUT)"

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The property tests and the fuzzers of files and configs, each with 2,000 new inputs; hours on two cores. FUZZ=tests/unit/fuzz runs
# a part, EXAMPLES=200 a tenth. What fails is kept in .hypothesis, and the next run begins with it.
FUZZ ?= tests
EXAMPLES ?= 2000
fuzz: $(VENV)/.installed
	HYPOTHESIS_PROFILE=fuzz FUZZ_EXAMPLES=$(EXAMPLES) $(BIN)/python -m pytest -m fuzz -n auto --maxprocesses 4 $(FUZZ)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation: served at http://127.0.0.1:8000, or written to build/site. A warning fails the build.
docs: $(VENV)/.installed
	$(BIN)/mkdocs serve

docs-build: $(VENV)/.installed
	$(BIN)/mkdocs build

# The real nemo2riva on CPU, in an environment of its own (.venv-riva: Python 3.10, minutes, 6 GB). STUDENT=file.nemo converts and
# checks that one; without it two students are made that must pass and three that must be refused.
riva-check: $(if $(STUDENT),,$(VENV)/.installed)
	$(if $(STUDENT),examples/riva/riva_check.sh "$(STUDENT)",examples/riva/self_check.sh "$(BIN)")

# The oldest NeMo that students must run in, in an environment of its own without this package (minutes, 2.5 GB, once): do the same
# files mean the same there? Small students of its own, or STUDENT=file.nemo.
COMPAT_VENV ?= .venv-compat
$(COMPAT_VENV)/.installed: benchmarks/compat-constraints.txt
	$(PYTHON) -m venv $(COMPAT_VENV)
	echo '*' > $(COMPAT_VENV)/.gitignore
	$(COMPAT_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(COMPAT_VENV)/bin/python -m pip install --quiet -c $< torch
	$(COMPAT_VENV)/bin/python -m pip install --quiet -c $< "nemo_toolkit[asr]" safetensors
	touch $@

compat-check: $(VENV)/.installed $(COMPAT_VENV)/.installed
	$(BIN)/python benchmarks/compat.py --python $(COMPAT_VENV)/bin/python $(if $(STUDENT),"$(STUDENT)")

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
