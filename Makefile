# Every target sets the environment up first where it is stale: `make demo` and `make test` are all
# that a fresh machine needs besides Python 3.11.

PYTHON ?= python3.11
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test chaos check format proto clean

setup: $(READY)

# uv resolves and installs in seconds what takes pip minutes, and shares its cache between clones.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/python -m demo

test: $(READY)
	$(BIN)/python -m pytest

# Three minutes on two idle cores; `make test` has the short form.
chaos: $(READY)
	$(BIN)/python -m tests.kafka.chaos

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/python -m pytest --quiet tests/test_dependency_rule.py tests/proto

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

proto: $(READY)
	$(BIN)/python proto/generate.py

clean:
	rm -rf .venv build dist runs .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
