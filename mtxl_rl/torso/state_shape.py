"""The shapes of a torso's states: makes empty states and checks the arguments of calls."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from mtxl_rl.torso.cache import Cache
from mtxl_rl.torso.state import MemoryState, describe
from mtxl_rl.torso.torso_config import TorsoConfig

# B rows, T steps, N layers, M window, D width, A long-term memories.

_FROM_STATE = "start from this torso's initial_state(B), or build it with the state's configuration"


@dataclass(kw_only=True, frozen=True)
class StateShape:
    """The shapes of one torso's states.

    The checks read shapes and dtypes, never values on a device. States of two torsos with equal
    shapes, as of delta and linear memories of one size, are not distinguished.
    """

    config: TorsoConfig
    """The torso's."""
    window: tuple[int, int, int]
    """Of a row: N, M, D."""
    long_term: tuple[int, ...]
    """Of a row: A, *memory."""
    odometry: int = 0
    """Of a row: O."""

    def zeros(self, batch_size: int, like: Tensor) -> MemoryState:
        """The state of episodes that are about to start, in the device and dtype of `like`.

        With narrower weights the long-term memory and the odometry are float32, because they sum
        small changes.
        """
        count = torch.zeros(batch_size, dtype=torch.long, device=like.device)
        return MemoryState(
            window=like.new_zeros(batch_size, *self.window),
            window_length=count,
            long_term=like.new_zeros(batch_size, *self.long_term, dtype=_memory_dtype(like)),
            segment_step=count.clone(),
            odometry=like.new_zeros(batch_size, self.odometry, dtype=_memory_dtype(like)),
        )

    def check_sequence(
        self, x: Tensor, state: MemoryState, is_first: Tensor, weight: Tensor
    ) -> None:
        """Check the arguments of `forward` with weights like `weight`.

        Raises:
            ValueError: a shape or dtype does not match this torso.
        """
        self.check_state(state, weight)
        self._check_inputs(x, is_first, (state.batch_size, "T"), weight)

    def check_step(self, x: Tensor, cache: Cache, is_first: Tensor, weight: Tensor) -> None:
        """Check the arguments of `decode_step` with weights like `weight`.

        Raises:
            ValueError: a shape or dtype does not match this torso, or the cache is another torso's.
        """
        if not isinstance(cache, Cache):
            raise ValueError(f"the cache is {describe(cache)}; pass what prefill(state) returned")
        if cache.config is not self.config and cache.config != self.config:
            ours, others = asdict(self.config), asdict(cache.config)
            different = [
                f"torso.{name}={others[name]} instead of {value}"
                for name, value in ours.items()
                if others[name] != value
            ]
            raise ValueError(
                f"the cache is another torso's, with {', '.join(different)}; pass what this "
                "torso's prefill(state) returned"
            )
        self._check_inputs(x, is_first, (len(cache.window_length),), weight)

    def check_state(self, state: MemoryState, weight: Tensor) -> None:
        """Check that a state is this torso's.

        Raises:
            ValueError: it is not a `MemoryState`, or a shape or dtype does not match.
        """
        if not isinstance(state, MemoryState):
            raise ValueError(
                f"the state is {describe(state)}, but must be a MemoryState; pass what "
                "initial_state(batch_size) or an earlier call returned"
            )
        batch, dtype = state.batch_size, weight.dtype
        memory_dtype = _memory_dtype(weight)
        shapes = (
            (batch, *self.window),
            (batch,),
            (batch, *self.long_term),
            (batch,),
            (batch, self.odometry),
        )
        dtypes = (dtype, torch.long, memory_dtype, torch.long, memory_dtype)
        for name, field, shape, wanted in zip(
            MemoryState._fields, state, shapes, dtypes, strict=True
        ):
            _check_tensor(f"state.{name}", field, shape, wanted, _FROM_STATE)

    def check_timeline(self, timeline: Tensor, batch_size: int, weight: Tensor) -> None:
        """Check the timeline that a `prefill` with weights like `weight` writes into.

        Raises:
            ValueError: it has no room for the window and a step of each row, or it does not match
                the weights' dtype or device.
        """
        num_layers, size, width = self.window
        shape = (batch_size, num_layers, "M + num_steps", width)
        hint = f"with M = {size}, num_steps of 1 or more, on {weight.device}"
        _check_tensor("the timeline", timeline, shape, weight.dtype, hint)
        if timeline.shape[2] <= size or timeline.device != weight.device:
            _refuse(f"the timeline on {timeline.device}", timeline, shape, weight.dtype, hint)

    def _check_inputs(
        self, x: Tensor, is_first: Tensor, leading: tuple[int | str, ...], weight: Tensor
    ) -> None:
        hint = "[rows, steps, width], or [rows, width] for decode_step"
        _check_tensor("x", x, (*leading, self.window[-1]), weight.dtype, hint)
        _check_tensor("is_first", is_first, tuple(x.shape[:-1]), None, "one mark per row and step")


def _memory_dtype(weight: Tensor) -> torch.dtype:
    """The dtype of the long-term memory with such weights."""
    return torch.promote_types(weight.dtype, torch.float32)


def _check_tensor(
    name: str,
    value: Tensor,
    shape: tuple[int | str, ...],
    dtype: torch.dtype | None,
    hint: str,
) -> None:
    """Check a tensor; a string in `shape` is any size of 1 or more, and None is any dtype."""
    if not (isinstance(value, Tensor) and _has_shape(value, shape) and _has_dtype(value, dtype)):
        _refuse(name, value, shape, dtype, hint)


def _has_shape(value: Tensor, shape: tuple[int | str, ...]) -> bool:
    return value.ndim == len(shape) and all(
        size >= 1 if isinstance(wanted, str) else size == wanted
        for size, wanted in zip(value.shape, shape, strict=True)
    )


def _has_dtype(value: Tensor, dtype: torch.dtype | None) -> bool:
    """Autocast chooses dtypes itself, so that any float is accepted there."""
    if dtype is None or value.dtype == dtype:
        return True
    if not dtype.is_floating_point:
        return not value.is_floating_point()
    return value.is_floating_point() and torch.is_autocast_enabled(value.device.type)


def _refuse(
    name: str, value: object, shape: tuple[int | str, ...], dtype: torch.dtype | None, hint: str
) -> None:
    wanted = f"{dtype or 'a tensor'} [{', '.join(str(size) for size in shape)}]"
    raise ValueError(f"{name} is {describe(value)}, but this torso takes {wanted}: {hint}")
