"""The benchmark of the caches, a row of its table a module: ``python -m benchmarks.cache``."""
