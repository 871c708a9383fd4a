"""Any torso as a module of TorchRL, in its LSTMModule's place: `pip install 'mtxl_rl[torchrl]'`.

The memory travels through the tensordicts as one vector per step, `MemoryState.to_flat`.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torch._C._functorch import is_batchedtensor
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer
from torchrl.modules import recurrent_mode

from mtxl_rl.integrations.flat_torso import FlatTorso
from mtxl_rl.torso import Torso, TorsoConfig, build_torso

# *b batch axes, T steps, D width, n numbers of a memory.


class TorsoModule(TensorDictModuleBase):  # type: ignore[misc]
    """A torso that steps, and in `set_recurrent_mode(True)` runs over the last batch axis as time.

    As with LSTMModule the environment needs `InitTracker()`, which marks first steps, and
    `make_tensordict_primer()`, which adds the memory. Episodes may start anywhere inside a span;
    both modes compute the same. In recurrent mode a span starts from the memory stored at its first
    step. At each step that "is_init" marks it starts again from the memory stored there, which is
    zero after a reset. Gradients flow over all steps between. (TorchRL's GAE also marks the step
    after each episode's first, whose stored memory has seen the first.) Memories stored at other
    steps are neither read nor renewed. Storage of spans can leave them out: a memory has n numbers.

    What is stored decides how a span runs, which no vmap can do: GAE takes such networks with
    `deactivate_vmap=True`.

    Args:
        torso: a torso, or what to build.
        in_key: features `[*b, D]`.
        out_key: the torso's outputs, `[*b, D]`.
        memory_key: the memory before a step, `[*b, n]`; that after it is ("next", memory_key).
    """

    def __init__(
        self,
        torso: Torso | TorsoConfig,
        *,
        in_key: str = "features",
        out_key: str = "features",
        memory_key: str = "memory",
    ) -> None:
        super().__init__()
        self.torso = FlatTorso(build_torso(torso) if isinstance(torso, TorsoConfig) else torso)
        self.memory_key = memory_key
        self.in_keys: list[Any] = [in_key, memory_key, "is_init"]
        self.out_keys: list[Any] = [out_key, ("next", memory_key)]

    @property
    def memory_size(self) -> int:
        """The numbers of one memory, n."""
        return self.torso.memory_size

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """The transform that gives an environment's tensordicts an empty memory at each reset."""
        return TensorDictPrimer(
            {self.memory_key: Unbounded(shape=(self.memory_size,))}, expand_specs=True
        )

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write what the torso makes of each step, and when stepping the memory after it.

        Raises:
            ValueError: there is no "is_init", or in recurrent mode no axis of time, or a vmap is
                around it.
        """
        in_key, _, marks = self.in_keys
        is_first = tensordict.get(marks, None)
        if is_first is None:
            raise ValueError(
                f"the tensordict has no {marks!r}, which marks the steps that start an episode; "
                "append the transform torchrl.envs.InitTracker() to the environment"
            )
        batch = tensordict.batch_size
        is_span = bool(recurrent_mode())
        if is_span and not batch:
            raise ValueError(
                "a tensordict without batch axes was given in recurrent mode, in which the last "
                "one is time; leave set_recurrent_mode(True), or stack the steps"
            )
        num_steps = batch[-1] if is_span else 1
        x = tensordict.get(in_key)
        x = x.reshape(-1, num_steps, x.shape[-1])
        is_first = is_first.reshape(-1, num_steps)
        memories = self._memories(tensordict, x)
        if is_span:
            y = self._span(x, memories, is_first)
        else:
            y, after = self.torso(x, memories[:, 0], is_first)
            tensordict.set(self.out_keys[1], after.reshape(*batch, self.memory_size))
        tensordict.set(self.out_keys[0], y.reshape(*batch, y.shape[-1]))
        return tensordict

    def _memories(
        self, tensordict: TensorDictBase, x: Float[Tensor, "B T D"]
    ) -> Float[Tensor, "B T n"]:
        """The memories before the steps; empty ones where none is stored."""
        stored = tensordict.get(self.memory_key, None)
        if stored is None:
            return torch.zeros(1, 1, 1, device=x.device).expand(*x.shape[:2], self.memory_size)
        return stored.reshape(*x.shape[:2], stored.shape[-1])

    def _span(
        self,
        x: Float[Tensor, "B T D"],
        memories: Float[Tensor, "B T n"],
        is_first: Bool[Tensor, "B T"],
    ) -> Float[Tensor, "B T D"]:
        """The torso's output for all steps."""
        if is_batchedtensor(x):
            raise ValueError(
                "a torso in recurrent mode runs under no vmap, as GAE makes one around its "
                "networks: give it deactivate_vmap=True"
            )
        if not memories[is_first].any():
            return self.torso(x, memories[:, 0], is_first)[0]
        # A row for each part that starts from a stored memory, as long as the longest.
        starts = is_first.clone()
        starts[:, 0] = True
        row, begin = starts.nonzero(as_tuple=True)
        num_steps = x.shape[1]
        length = torch.diff(row * num_steps + begin, append=row.new_tensor([starts.numel()]))
        step = torch.arange(int(length.max()), device=x.device)
        parts = x[row[:, None], (begin[:, None] + step).clamp(max=num_steps - 1)]
        y, _ = self.torso(
            parts, memories[row, begin], torch.zeros_like(parts[..., 0], dtype=torch.bool)
        )
        return y[step < length[:, None]].view_as(x)
