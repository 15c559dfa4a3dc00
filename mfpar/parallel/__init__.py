"""Ranks: one contract for a serial run and for MPI, and the start of ranks. The only place that knows mpi4py."""
