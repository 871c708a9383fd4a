"""What both command lines share: a user's mistake ends in one sentence."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End the program with one sentence and exit code 1; MTXL_RL_TRACEBACK=1 shows where."""
    try:
        yield
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("MTXL_RL_TRACEBACK"):
            raise
        said = str(error)
        if isinstance(error, OSError) and error.strerror and error.filename is None:
            said = error.strerror  # Without the number that str() puts in front.
        sys.stderr.write(f"error: {said}\n")
        raise SystemExit(1) from None
