"""Measurements that README and docs quote: ratios of interleaved runs, never part of the tests."""
