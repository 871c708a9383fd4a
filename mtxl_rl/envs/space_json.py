"""Gymnasium spaces as text: plain values for an agent's file, and a line for messages."""

import math
from typing import Any

import numpy as np
from gymnasium import Space, spaces
from numpy.typing import NDArray

_MOST_NUMBERS = 2**28
"""A larger observation is a damaged description: its bounds alone would fill gigabytes."""


def space_line(space: Space[Any]) -> str:
    """The space in one line, for messages: NumPy breaks long arrays."""
    return " ".join(str(space).split())


def space_to_json(space: Space[Any]) -> dict[str, Any]:
    """Return the space as dicts, lists, numbers and strings; see `space_from_json`.

    Raises:
        ValueError: The space is not Box, Discrete, MultiDiscrete, MultiBinary or a Dict of them.
    """
    kind = type(space).__name__
    if isinstance(space, spaces.Dict):
        leaves = {key: space_to_json(leaf) for key, leaf in space.spaces.items()}
        return {"type": "Dict", "spaces": leaves}
    dtype = str(space.dtype)
    if isinstance(space, spaces.Box):
        bounds = {"low": _bound_to_json(space.low), "high": _bound_to_json(space.high)}
        return {"type": "Box", "shape": list(space.shape), "dtype": dtype, **bounds}
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        choices = {"nvec": space.nvec.tolist(), "start": space.start.tolist()}
        return {"type": "MultiDiscrete", "dtype": dtype, **choices}
    if isinstance(space, spaces.MultiBinary):
        n = space.n if isinstance(space.n, int) else list(space.n)
        return {"type": "MultiBinary", "n": n}
    raise ValueError(
        f"a space of type {kind} cannot be saved; use Box, Discrete, MultiDiscrete, MultiBinary or "
        "a Dict of them"
    )


def space_from_json(document: dict[str, Any]) -> Space[Any]:
    """Return the space that `space_to_json` described."""
    kind = document["type"]
    if kind == "Dict":
        return spaces.Dict({key: space_from_json(it) for key, it in document["spaces"].items()})
    if kind == "Box":
        shape, dtype = tuple(document["shape"]), np.dtype(document["dtype"])
        if math.prod(shape) > _MOST_NUMBERS:
            raise ValueError(f"a Box of shape {shape} has more than {_MOST_NUMBERS:,} numbers")
        low, high = (
            np.broadcast_to(np.asarray(document[name], dtype), shape) for name in ("low", "high")
        )
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(document["n"], start=document["start"])
    if kind == "MultiDiscrete":
        dtype = np.dtype(document["dtype"])
        return spaces.MultiDiscrete(document["nvec"], dtype=dtype.type, start=document["start"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(document["n"])
    raise ValueError(f"{kind} is not a space that mtxl_rl saves")


def _bound_to_json(bound: NDArray[Any]) -> Any:  # noqa: ANN401 - a number, or nested lists of them
    """One number where all are equal, as for images, else nested lists."""
    is_uniform = bound.size > 0 and bool((bound == bound.flat[0]).all())
    return bound.flat[0].item() if is_uniform else bound.tolist()
