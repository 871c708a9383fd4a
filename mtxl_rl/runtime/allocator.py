"""How the C library gives memory to torch on a CPU."""

import ctypes

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Parameters of mallopt(3), from glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next tensor, instead of returning it to the system.

    By default it returns every block above 32 MB when it is freed, and the system fills the next
    one with zeros, page by page. With minibatches of pictures that is a quarter of the encoder's
    time. Results do not change. Does nothing with other C libraries.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no mallopt; TypeError: Windows
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 2**26)
