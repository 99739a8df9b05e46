# Each target is one line over the real command; see README.md.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV := .venv
SECONDS ?= 600
RUN := $(VENV)/bin/python

.PHONY: setup demo check check-vm check-long fuzz deb man bench clean
setup: ; @sh tools/setup $(PYTHON) $(VENV)
demo: setup ; @sh tools/demo $(RUN)
check: setup ; @$(RUN) -m pytest tests
check-vm: setup ; @sh tests/vm/setup && $(RUN) -m tests.vm $(addprefix --suite=,$(SUITE)) $(ARGS)
check-long: setup ; @HYPOTHESIS_PROFILE=long $(RUN) -m pytest tests/core
fuzz: setup ; @$(VENV)/bin/pip install -q -e '.[fuzz]' && $(RUN) -m tests.fuzz $(SECONDS) $(ARGS)
deb: setup ; @sh tools/deb $(RUN) build/deb && sh tools/need lintian && lintian --fail-on error,warning build/deb/*.changes
man: setup ; @$(RUN) tools/manual.py
bench: setup ; @$(RUN) -m tests.bench
clean: ; rm -rf $(VENV) build dist *.egg-info .coverage*
