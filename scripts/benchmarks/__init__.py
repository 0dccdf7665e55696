"""What the benchmarks share, and the parts of `benchmark_train.py`."""
