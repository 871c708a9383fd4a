"""The memory of a batch of episodes, as a value. All zeros means "an episode starts here"."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils._pytree import _register_namedtuple

from mtxl_rl.torso.torso_config import TorsoConfig

# B rows (environments), N layers, M window length, D width, A long-term memories: one per layer
# that has one, or one that all share.


class MemoryState(NamedTuple):
    """What a torso remembers between two calls; passed in and returned, never kept on a module.

    Frameworks reset a row by zeroing it. So a zeroed row is exactly a row whose next step starts
    an episode: an empty window, an untouched long-term memory, the first step of a segment.
    """

    window: Float[Tensor, "B N M D"]
    """Each layer's inputs at the last M steps, the newest last; zero where not valid. M is 0 in a
    torso without a window."""
    window_length: Int[Tensor, " B"]
    """How many of the window's steps, counted from the newest, belong to the episode: 0 .. M."""
    long_term: Float[Tensor, "B A *memory"]
    """The long-term memories, as they stood at the last segment boundary; in a recurrent torso
    each layer's recurrent state, as the last step left it."""
    segment_step: Int[Tensor, " B"]
    """Steps since the last segment boundary: 0 .. S - 1."""

    @property
    def batch_size(self) -> int:
        """Rows, B."""
        return self.window.shape[0]

    def apply(self, function: Callable[[Tensor], Tensor]) -> "MemoryState":
        """The state with `function` applied to each tensor; it must keep the first axis B."""
        return MemoryState(*(function(field) for field in self))

    def rows(self, index: Tensor | slice | list[int]) -> "MemoryState":
        """The chosen rows, in the order of `index` (as in tensor indexing along B)."""
        return self.apply(lambda field: field[index])

    def detach(self) -> "MemoryState":
        """The state cut off from the graph: where truncated backpropagation stops."""
        return self.apply(Tensor.detach)

    def to(self, device: torch.device | str) -> "MemoryState":
        """The state on `device`."""
        return self.apply(lambda field: field.to(device))

    def reset(self, rows: torch.Tensor) -> "MemoryState":
        """The state with the rows marked in `rows` ([B]; True, or any number but 0) zeroed.

        Raises:
            ValueError: `rows` does not mark each row.
        """
        if rows.shape != self.window_length.shape:
            raise ValueError(
                f"rows of shape {list(rows.shape)} were given, but {self.batch_size} rows need a "
                f"mark each, [{self.batch_size}]: True where a row is to be zeroed"
            )
        marked = rows.bool()
        # Not a product with zero, which would keep a NaN.
        return self.apply(
            lambda field: field.masked_fill(marked.view(-1, *[1] * (field.ndim - 1)), 0)
        )

    def to_flat(self) -> Float[Tensor, "B n"]:
        """One float32 vector per row, for frameworks that store states as flat arrays."""
        return torch.cat([field.flatten(1).float() if field.ndim > 1 else field[:, None].float()
                          for field in self], dim=1)  # fmt: skip

    def from_flat(self, flat: Float[Tensor, "B n"]) -> "MemoryState":
        """The inverse of `to_flat`; `self`, of any batch size, gives the shapes and dtypes.

        Raises:
            ValueError: `flat` is no tensor [B, n] of the width of this kind of state, or it is
                neither float32 nor float64.
        """
        sizes = [field.shape[1:].numel() for field in self]
        if not isinstance(flat, Tensor) or flat.ndim != 2:
            what = list(flat.shape) if isinstance(flat, Tensor) else type(flat).__name__
            raise ValueError(
                f"a flat state {what} was given, but it must be a tensor of shape "
                f"[B, {sum(sizes)}]; torch.as_tensor makes one, flat[None] one of a single row"
            )
        if flat.shape[1] != sum(sizes):
            raise ValueError(
                f"a flat state of width {flat.shape[1]} was given, but this torso's states have "
                f"width {sum(sizes)}; build the torso with the sizes that the state was saved with"
            )
        if flat.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"a flat state of {flat.dtype} was given, but it must be of float32 or float64: "
                "narrower types round, and counts of steps with them; store to_flat() as it is"
            )
        parts = flat.split(sizes, dim=1)
        return MemoryState(*(
            part.reshape(len(flat), *field.shape[1:]).to(field.dtype)
            for part, field in zip(parts, self, strict=True)
        ))  # fmt: skip


# It is plain tensors, so `torch.load` may read one without weights_only=False.
torch.serialization.add_safe_globals([MemoryState])
# And `torch.export.save` may write it among an exported torso's inputs and outputs.
_register_namedtuple(MemoryState, serialized_type_name="mtxl_rl.MemoryState")


@dataclass(kw_only=True)
class ActingMemory(ABC):
    """A `MemoryState` in use by a torso's `act`, which changes it in place.

    Built by the torso's `begin`; good for as long as the weights stay the same.
    """

    config: TorsoConfig
    """Of the torso that began it."""
    long_term: Float[Tensor, "A B *memory"]
    window_length: Int[Tensor, " B"]
    segment_step: Int[Tensor, " B"]

    @abstractmethod
    def state(self) -> MemoryState:
        """The state after the steps taken: what the torso's `forward` would return."""

    def changing(self) -> dict[str, Tensor]:
        """The tensors that `act` changes, by name."""
        return {"long_term": self.long_term}


@dataclass(kw_only=True, frozen=True)
class StateShape:
    """The shapes of one torso's states: it makes empty ones and checks what a call is given.

    The checks read shapes and types alone, never what a device holds. So a state of a torso that
    differs in nothing else, as delta and linear memories of one size do, passes for one of this
    torso.
    """

    config: TorsoConfig
    """The torso's."""
    window: tuple[int, int, int]
    """Of a row: N, M, D."""
    long_term: tuple[int, ...]
    """Of a row: A, *memory."""

    def zeros(self, batch_size: int, like: Tensor) -> MemoryState:
        """Episodes that are about to start, on the device of the weight `like`, in its type.

        The long-term memory is float32 where weights are narrower: it sums up small changes.
        """
        count = torch.zeros(batch_size, dtype=torch.long, device=like.device)
        return MemoryState(
            window=like.new_zeros(batch_size, *self.window),
            window_length=count,
            long_term=like.new_zeros(batch_size, *self.long_term, dtype=_memory_type(like)),
            segment_step=count.clone(),
        )

    def check_sequence(
        self, x: Tensor, state: MemoryState, is_first: Tensor, weight: Tensor
    ) -> None:
        """Refuse what a `forward` with weights like `weight` cannot take.

        Raises:
            ValueError: a shape or a type is another than this torso's.
        """
        self.check_state(state, weight)
        _require_tensors(x=x, is_first=is_first)
        batch, width = state.batch_size, self.window[-1]
        if x.ndim != 3 or x.shape[0] != batch or x.shape[2] != width or 0 in x.shape:
            raise ValueError(
                f"x of shape {list(x.shape)} was given, but with a state of {batch} rows this "
                f"torso takes [{batch}, T, {width}]: rows and steps, both 1 or more, and its width"
            )
        _require_type("x", x, weight)
        _require_is_first(is_first, x)

    def check_step(self, x: Tensor, memory: ActingMemory, is_first: Tensor, weight: Tensor) -> None:
        """Refuse what an `act` with weights like `weight` cannot take.

        Raises:
            ValueError: a shape or a type is another than this torso's, or another torso's memory.
        """
        if not isinstance(memory, ActingMemory):
            raise ValueError(
                f"a memory of type {type(memory).__name__} was given; act takes what this torso's "
                "begin(state) returns"
            )
        if memory.config is not self.config:
            _require_same(memory.config, self.config)
        _require_tensors(x=x, is_first=is_first)
        rows = (memory.window_length.shape[0], self.window[-1])
        if x.shape != rows or 0 in rows:
            raise ValueError(
                f"x of shape {list(x.shape)} was given, but with a memory of {rows[0]} rows this "
                f"torso's act takes {list(rows)}: rows, 1 or more, and its width"
            )
        _require_type("x", x, weight)
        _require_is_first(is_first, x)

    def check_state(self, state: MemoryState, weight: Tensor) -> None:
        """Refuse a state that is not of this torso.

        Raises:
            ValueError: it is no `MemoryState`, or of other shapes or types.
        """
        if not isinstance(state, MemoryState):
            raise ValueError(
                f"a state of type {type(state).__name__} was given; it must be a MemoryState: what "
                "initial_state(batch_size) or an earlier call returned"
            )
        batch = state.batch_size
        shapes = ((batch, *self.window), (batch,), (batch, *self.long_term), (batch,))
        for name, field, shape in zip(MemoryState._fields, state, shapes, strict=True):
            if field.shape != shape:
                raise ValueError(
                    f"a state whose {name} has the shape {list(field.shape)} was given, but this "
                    f"torso's has {list(shape)}; begin with this torso's initial_state, or build "
                    "the torso with the sizes that the state was made with"
                )
        _require_type("state.window", state.window, weight)
        _require_type("state.long_term", state.long_term, weight, _memory_type(weight))
        if state.window_length.is_floating_point() or state.segment_step.is_floating_point():
            raise ValueError(
                "a state whose window_length or segment_step holds floats was given, but they "
                "count steps; a framework that stores floats can store state.to_flat()"
            )

    def check_timeline(self, timeline: Tensor, batch_size: int, weight: Tensor) -> None:
        """Refuse a timeline that a `begin` with weights like `weight` cannot write to.

        Raises:
            ValueError: it has no room for the window and a step of each row, or another type or
                device than the weights.
        """
        _require_tensors(timeline=timeline)
        (layers, size, width), shape = self.window, tuple(timeline.shape)
        fits = len(shape) == 4 and shape[:2] + shape[3:] == (batch_size, layers, width)
        if not fits or shape[2] <= size:
            raise ValueError(
                f"a timeline of shape {list(shape)} was given, but acting needs "
                f"[{batch_size}, {layers}, {size} + num_steps, {width}], num_steps 1 or more"
            )
        _require_type("timeline", timeline, weight)
        if timeline.device != weight.device:
            raise ValueError(
                f"a timeline on {timeline.device} was given, but this torso's weights are on "
                f"{weight.device}; move it by .to('{weight.device}'), or the torso"
            )


def _require_tensors(**named: Tensor) -> None:
    for name, given in named.items():
        if not isinstance(given, Tensor):
            raise ValueError(
                f"{name} of type {type(given).__name__} was given, but must be a tensor; "
                "torch.as_tensor makes one"
            )


def _memory_type(weight: Tensor) -> torch.dtype:
    """The type of the long-term memory beside such weights."""
    return torch.promote_types(weight.dtype, torch.float32)


def _require_type(
    name: str, given: Tensor, weight: Tensor, expected: torch.dtype | None = None
) -> None:
    """Under autocast, which chooses types itself, all floats go."""
    expected = expected or weight.dtype
    if given.dtype == expected:
        return
    if not (given.is_floating_point() and torch.is_autocast_enabled(weight.device.type)):
        raise ValueError(
            f"{name} of {given.dtype} was given, but a torso whose weights are of {weight.dtype} "
            f"takes {expected}; cast it by .to({expected}), or the torso"
        )


def _require_is_first(is_first: Tensor, x: Tensor) -> None:
    if is_first.shape != x.shape[:-1]:
        raise ValueError(
            f"is_first of shape {list(is_first.shape)} was given, but x of shape {list(x.shape)} "
            f"needs {list(x.shape[:-1])}: one mark for each row's step"
        )


def _require_same(given: TorsoConfig, config: TorsoConfig) -> None:
    theirs, ours = asdict(given), asdict(config)
    differing = [name for name in ours if theirs[name] != ours[name]]
    if differing:
        told = ", ".join(f"torso.{name}={theirs[name]}" for name in differing)
        wanted = ", ".join(f"{name}={ours[name]}" for name in differing)
        raise ValueError(
            f"the memory of another torso was given ({told}; this one: {wanted}); act takes what "
            "this torso's begin(state) returns"
        )
