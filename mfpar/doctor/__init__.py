"""Whether machines, MPI and settings are fit for a run: `mfpar doctor`."""
