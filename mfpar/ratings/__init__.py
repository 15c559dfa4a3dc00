"""From sources of ratings (text, Parquet, matrices, arrays, tables) to the blocked HDF5 file."""
