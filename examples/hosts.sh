#!/usr/bin/env bash
# Ranks on several hosts by ssh, with Open MPI's mpirun and no scheduler.
#
# Needed: ssh to each host without a password; the same Open MPI and mfpar in the same place on each; one file system for
# ratings, model and log. Homes, folders for temporary files and Numba's caches may be each host's own.
set -euo pipefail

hosts=${HOSTS:-alpha:2,beta:2}    # name:ranks, …; the ranks of a host follow one on the other, and share column-blocks
threads=${THREADS:-8}             # of a rank: ranks × threads are the cores of a host
network=${NETWORK:-10.0.0.0/24}   # that connects the hosts; or a network interface that is called alike on all, as eth0
bin=${BIN:-/opt/mfpar/bin}        # mpirun and mfpar; called by its path, mpirun finds the rest of itself on other hosts
shared=${SHARED:-/shared}         # seen by all hosts under this name

# mpirun hands on what -x names, and nothing else of this shell. Worth a thought:
#   -x NUMBA_CACHE_DIR    a folder for compiled kernels, where a host can write neither to mfpar's own nor to the home
#   -x PYTHONPATH         for a loss of your own, --loss module:name
#   -x MPI4PY_LIBMPI      where mpi4py does not find the MPI library
# Instead of `--map-by slot --bind-to none`, one rank for each NUMA domain: `--map-by ppr:1:numa --bind-to numa`.
# With InfiniBand, and an Open MPI that has UCX, instead of the line of ob1: `--mca pml ucx -x UCX_NET_DEVICES=mlx5_0:1`.
"$bin/mpirun" --host "$hosts" --map-by slot --bind-to none \
    --mca pml ob1 --mca btl self,sm,tcp --mca btl_tcp_if_include "$network" \
    --prtemca prte_if_include "$network" -x OPENBLAS_NUM_THREADS=1 \
    "$bin/mfpar" train "$shared/ratings.h5" -o "$shared/model.h5" --threads "$threads" --log "$shared/run.jsonl" "$@"
