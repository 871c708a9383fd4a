"""Shares a batch between threads that sleep while they wait.

OpenMP's threads spin, and two spinning threads on one core are slower than one: with as many
threads as cores and another busy process, 33 us a frame became 125. These claim small chunks one
after the other, so a thread that the system holds up delays one chunk.
"""

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

_CHUNKS_PER_THREAD = 4


class Threads:
    """Runs ``function(first, last, *arguments)`` over the rows of a batch.

    Args:
        num_rows: Rows of the batch.
        num_threads: Threads, the caller's included; 0 is one for each core.
    """

    def __init__(self, num_rows: int, *, num_threads: int) -> None:
        wanted = num_threads or _num_cores()
        self.num_threads = max(1, min(wanted, num_rows))
        num_chunks = 1 if self.num_threads == 1 else self.num_threads * _CHUNKS_PER_THREAD
        edges = [i * num_rows // num_chunks for i in range(num_chunks + 1)]
        self._chunks = [(a, b) for a, b in itertools.pairwise(edges) if b > a]
        self._pool: ThreadPoolExecutor | None = None
        if self.num_threads > 1:
            self._pool = ThreadPoolExecutor(self.num_threads - 1, "memory-maze")

    def run(self, function: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        """Returns when all rows are done; an error in a thread is raised here."""
        claims = itertools.count()  # next() is atomic

        def work() -> None:
            while (claim := next(claims)) < len(self._chunks):
                function(*self._chunks[claim], *arguments)

        helpers = []
        if self._pool is not None:
            helpers = [self._pool.submit(work) for _ in range(self.num_threads - 1)]
        work()
        for helper in helpers:
            helper.result()

    def close(self) -> None:
        """Ends the threads; a second call does nothing."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
