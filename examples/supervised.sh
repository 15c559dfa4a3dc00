#!/usr/bin/env bash
# Ranks on several hosts by ssh, without a scheduler, supervised: if a rank or a host is lost or hangs, the job is started
# again, at most five times, on the hosts that answer, and goes on from the last checkpoint. Run again, it goes on, too.
#
# Needed is what hosts.sh needs. This runs on a login node, or on one of the hosts.
set -euo pipefail

hosts=${HOSTS:-alpha:2,beta:2}    # name:ranks, …
threads=${THREADS:-8}             # of a rank: ranks × threads are the cores of a host
network=${NETWORK:-10.0.0.0/24}   # that connects the hosts; or a network interface that is called alike on all, as eth0
bin=${BIN:-/opt/mfpar/bin}        # mpirun and mfpar
shared=${SHARED:-/shared}         # seen by all hosts under this name

# Open MPI's settings are variables here, in place of the options of mpirun; so is what to call in place of ssh.
export OMPI_MCA_btl_tcp_if_include=$network PRTE_MCA_prte_if_include=$network
"$bin/mfpar" train "$shared/ratings.h5" -o "$shared/model.h5" --threads "$threads" --log "$shared/run.jsonl" \
    --hosts "$hosts" --restarts 5 --checkpoint "$shared/saved" --resume auto "$@"
