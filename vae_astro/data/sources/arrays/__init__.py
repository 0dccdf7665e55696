"""Arrays: NumPy and HDF5 files that hold many stamps."""
