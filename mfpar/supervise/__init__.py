"""Starting ranks by mpirun, and seeing to it that their job gets done."""
