"""Decoding bytes from outside in child processes that can be killed.

A decoder of image formats is much code that follows what a file says. Here it runs in a small pool
of child processes, each with a limit of memory and of time; what a file does there, it does to
itself. Pixels come back through shared memory. `decode` is for one image, `try_decode` for who has
more to do before a large one gets its second try.
"""

from pipeline.decoders.decoder import decode, start_early, try_decode
from pipeline.decoders.process import BudgetExceededError
from pipeline.decoders.query import open_query

__all__ = ["BudgetExceededError", "decode", "open_query", "start_early", "try_decode"]
