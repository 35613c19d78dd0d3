# Two commands do everything: `make demo` and `make test`. Both build .venv from the pinned set first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test experiments-quick lint format clean

demo: .venv/.installed
	$(BIN)/sdekit demo --out runs/demo

test: .venv/.installed
	$(BIN)/python -m pytest

# Every experiment in its quick form, one folder each under runs/quick.
experiments-quick: .venv/.installed
	for script in experiments/*.py; do \
	  $(BIN)/python $$script --quick --out runs/quick/$$(basename $$script .py) || exit 1; \
	done

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: .venv/.installed-dev
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

# The stamps make a second call instant; a change of the requirements renews them.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[images,test]"
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf .venv runs build dist *.egg-info .pytest_cache .ruff_cache
