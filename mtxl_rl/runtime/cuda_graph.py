"""A call as one CUDA graph: its kernels are launched together, with no Python between them.

A step of acting is some hundred small kernels, each launched by the host in more time than it runs;
a minibatch is two thousand, of which those of small models are no longer.
"""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor

Given = TypeVar("Given")
Found = TypeVar("Found")

Capture = Callable[[Callable[[], None]], Callable[[], None]]
"""Records what a call launches, without running it, and returns what runs the record."""


def capture(call: Callable[[], None]) -> Callable[[], None]:
    """Record `call` as a CUDA graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


class Replayed(Generic[Given, Found]):
    """`call` on tensors that keep their places: first run, then recorded, then replayed.

    A graph reads and writes the same addresses each time. So what is given is copied to where the
    record reads it, and what is found is copied from where the record leaves it. Whatever else the
    call touches, weights and memories, must stay where it is and change in place. The call may ask
    the device nothing, and under autocast it must cast weights by itself: with the cache, the
    record would go on reading casts of the weights as they were. The first run is for what only a
    first one does, as to compile or to load kernels.

    Args:
        call: from a tree of tensors (tuples and mappings; None stays None) to another.
        capture: how it is recorded; another one than `capture` stands in where there is no GPU.
        lends: what is found holds until the next call, and is not copied.
    """

    def __init__(
        self,
        call: Callable[[Given], Found],
        *,
        capture: Capture = capture,
        lends: bool = False,
    ) -> None:
        self._call = call
        self._lends = lends
        self._capture = capture
        self._given: Given | None = None
        self._found: Found | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, given: Given) -> Found:
        """What `call` gives, in tensors of the caller's own unless it lends them."""
        if self._given is None:
            self._given = _map(torch.clone, given)
            self._run()
        else:
            _copy(self._given, given)
            if self._replay is None:
                self._replay = self._capture(self._run)
            self._replay()
        found = self._found if self._lends else _map(torch.clone, self._found)
        return cast("Found", found)

    def _run(self) -> None:
        self._found = self._call(cast("Given", self._given))


def _map(change: Callable[[Tensor], Tensor], tree: Any) -> Any:  # noqa: ANN401
    """The tree with its tensors changed."""
    if tree is None:
        return None
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        return {key: _map(change, part) for key, part in tree.items()}
    parts = [_map(change, part) for part in tree]
    return type(tree)(*parts) if hasattr(tree, "_fields") else tuple(parts)


def _copy(into: Any, tree: Any) -> None:  # noqa: ANN401
    """Copy the tree's tensors into those of one like it."""
    assert (into is None) == (tree is None), "what was given at first must be given always"
    if isinstance(into, Tensor):
        assert into.shape == tree.shape, (into.shape, tree.shape)
        into.copy_(tree)
    elif into is not None:
        keys = into if isinstance(into, Mapping) else range(len(into))
        for key in keys:
            _copy(into[key], tree[key])
