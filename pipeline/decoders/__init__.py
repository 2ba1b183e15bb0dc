"""Decoding bytes from outside in child processes that can be killed.

Decoders of image formats are complex code that processes untrusted data. Here they run in a small
pool of child processes, each with limits of memory and time, so that a malicious file harms only
its own decoder. Pixels come back through shared memory. `decode` is for one image; `try_decode` is
for callers that do other work before a large image gets its second try.
"""

from pipeline.decoders.decoder import decode, start_early, try_decode
from pipeline.decoders.process import BudgetExceededError
from pipeline.decoders.query import QueryFile, decode_query, read_query

__all__ = [
    "BudgetExceededError",
    "QueryFile",
    "decode",
    "decode_query",
    "read_query",
    "start_early",
    "try_decode",
]
