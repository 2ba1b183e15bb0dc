"""Caches of what was computed before; pure computation, without Redis (see docs/architecture.md).

`pipeline.caching.dcache` is the paper's cache of distances.
"""
