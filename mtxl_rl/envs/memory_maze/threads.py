"""Shares a batch between threads that sleep while they wait.

OpenMP's threads spin, and two spinning threads on one core are slower than one: with as many
threads as cores and another busy process, 33 us a frame became 125. These claim one row after the
other (`kernels.claim`), so a thread that the system holds up delays one row.
"""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.cores import num_cores_per_process


def rows_between(first: int, last: int) -> NDArray[np.int64]:
    """Rows first .. last - 1, for a kernel to claim once: [2], the next row and the end."""
    return np.array([first, last])


class Threads:
    """Runs ``kernel(rows, *arguments)`` until all rows of a batch are claimed.

    Args:
        num_rows: Rows of the batch.
        num_threads: Threads, the caller's included; 0 is one for each core of the
            process's share.
    """

    def __init__(self, num_rows: int, *, num_threads: int) -> None:
        requested = num_threads or num_cores_per_process()
        self.num_threads = max(1, min(requested, num_rows))
        self._num_rows = num_rows
        self._helpers = [_Helper() for _ in range(self.num_threads - 1)]

    def run(self, kernel: Callable[..., None], *arguments: Any) -> None:  # noqa: ANN401
        """Run the kernel and return when all rows are done; raise any thread's error."""
        rows = rows_between(0, self._num_rows)
        for helper in self._helpers:
            helper.start(kernel, rows, *arguments)
        try:
            kernel(rows, *arguments)
        finally:
            errors = [helper.wait() for helper in self._helpers]
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        """End the threads; a second call does nothing."""
        for helper in self._helpers:
            helper.close()
        self._helpers = []


class _Helper:
    """A thread that sleeps until it receives a call.

    Two locks take a third of the 60 us in which an executor's future hands over a call.
    """

    def __init__(self) -> None:
        self._call: tuple[Any, ...] | None = None
        self._error: BaseException | None = None
        self._has_call, self._is_done = threading.Lock(), threading.Lock()
        self._has_call.acquire()
        self._is_done.acquire()
        self._thread = threading.Thread(target=self._work, name="memory-maze", daemon=True)
        self._thread.start()

    def start(self, *call: Any) -> None:  # noqa: ANN401
        """Call call[0](*call[1:]) in the thread; `wait` must follow."""
        self._call = call
        self._has_call.release()

    def wait(self) -> BaseException | None:
        """Wait until the call has returned; return the error that it raised, or None."""
        self._is_done.acquire()
        return self._error

    def close(self) -> None:
        """End the thread."""
        self._call = None
        self._has_call.release()
        self._thread.join()

    def _work(self) -> None:
        while True:
            self._has_call.acquire()
            if self._call is None:
                return
            self._error = None
            try:
                self._call[0](*self._call[1:])
            except BaseException as error:
                self._error = error
            self._is_done.release()
