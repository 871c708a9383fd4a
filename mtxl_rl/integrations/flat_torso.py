"""A torso whose memory is one vector per row, as other frameworks store recurrent states."""

from jaxtyping import Float
from torch import Tensor, nn

from mtxl_rl.torso import Torso

# B rows, T steps, D width, n numbers of a memory.


class FlatTorso(nn.Module):
    """A torso with flat memories (`MemoryState.to_flat`); zeros start an episode."""

    def __init__(self, torso: Torso) -> None:
        super().__init__()
        self.torso = torso
        self.memory_size: int = torso.initial_state(1).to_flat().shape[1]
        """Numbers in one memory, n."""

    def forward(
        self, x: Float[Tensor, "B T D"], memory: Float[Tensor, "B n"], is_first: Tensor
    ) -> tuple[Float[Tensor, "B T D"], Float[Tensor, "B n"]]:
        """Outputs of T steps, and the memory after them."""
        y, state = self.torso(x, self.torso.initial_state(1).from_flat(memory), is_first)
        return y, state.to_flat()
