"""Training: schedule × kernels × rotation, on any number of ranks and threads, to the same bits."""
