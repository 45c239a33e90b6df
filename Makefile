# Two commands matter: `make demo` and `make test`. Both set up first, and both can be run again at once.

PYTHON = .venv/bin/python

.PHONY: help setup demo test apps quick lint clean

help:
	@echo "make demo   set up, build Uklfile.example, boot it and talk to the Redis inside"
	@echo "make test   set up, and run all tests (needs root; builds kernels: the first time takes long)"
	@echo "make apps   build, boot and test every application of apps/ (long the first time)"
	@echo "make quick  the tests that need no container and no virtual machine"
	@echo "make lint   ruff and mypy"
	@echo "make setup  Debian packages and .venv"
	@echo "make clean  remove what setup and the tests made here (the store stays: uklimg prune)"

setup:
	@scripts/setup.sh

demo: setup
	@scripts/demo.sh

test: setup
	@scripts/test.sh

apps: setup
	@UKLIMG_APPS=all scripts/test.sh tests/boot/test_apps.py

quick: setup
	@$(PYTHON) -m pytest -q -m "unit or golden"

lint: setup
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@for set in '' tests/boot tests/guest; do $(PYTHON) -m mypy $$set || exit 1; done

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
