"""Runs an agent from a file that `mtxl_rl.export` wrote: no compiler, and no agent's classes.

C++ runs the same file by torch's AOTIModelPackageLoader: `ExportedPolicy.about` lists its inputs in
their order, with shapes and types. Those named memory/... start as zeros and are changed in place,
is_first marks the rows whose episode starts, and noise is drawn anew for each step.
"""

import json
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.backends import cpu

# B rows: episodes that are stepped together.

ABOUT = "mtxl_rl"
"""Where in the file's metadata stands what `ExportedPolicy.about` tells."""


def made_for() -> str:
    """The torch and the processor that a file made here runs on."""
    return f"torch {torch.__version__}, {platform.machine()}, {cpu.get_cpu_capability()}"


class ExportedPolicy:
    """A policy's step from a file that `mtxl_rl.export` wrote, with the memory of its episodes.

    ```python
    agent = ExportedPolicy("policy.pt2")
    action = agent.act(observation)                  # an episode's first step
    action = agent.act(observation, reward=reward)   # with what the last action brought
    agent.reset()                                    # the next step starts an episode
    ```

    Args:
        path: the file.
        seed: of the actions that are drawn.

    Raises:
        ValueError: the file is no such, or made for another machine or torch.
        FileNotFoundError: there is no file.
    """

    def __init__(self, path: str | Path, *, seed: int = 0) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
        try:
            package = torch._inductor.aoti_load_package(str(path))
            self.about: dict[str, Any] = json.loads(package.loader.get_metadata()[ABOUT])
            """The file's inputs and outputs."""
        except (RuntimeError, KeyError) as error:
            raise ValueError(
                f"{path} is no file that mtxl_rl.export wrote: {str(error).splitlines()[0]}"
            ) from error
        if self.about["made_for"] != made_for():
            raise ValueError(
                f"{path} is made for {self.about['made_for']}, and this is {made_for()}; export "
                "the run here"
            )
        self._run: Callable[[list[Tensor]], list[Tensor]] = package.loader.run
        """Without the package's own wrapper, which takes a tenth of a millisecond."""
        self._inputs = {
            name: torch.zeros(shape, dtype=getattr(torch, dtype))
            for name, shape, dtype in self.about["inputs"]
        }
        self._given = list(self._inputs.values())
        self._rings = [
            tensor
            for name, tensor in self._inputs.items()
            if name.startswith(("memory/keys_", "memory/values_"))
        ]
        self._leaves = [
            name.removeprefix("observation/")
            for name in self._inputs
            if name.startswith("observation/")
        ]
        self._generator = torch.Generator().manual_seed(seed)
        self.value: Float[Tensor, " B"] = torch.zeros(self.num_rows)
        """What the last step said of the returns to come."""
        self.reset()

    @property
    def num_rows(self) -> int:
        """Episodes that one call steps, B."""
        return len(self._inputs["is_first"])

    def reset(self, rows: Iterable[int] | NDArray[Any] | Tensor | None = None) -> None:
        """The next step starts an episode, in the rows given or in all.

        Args:
            rows: their numbers, or a mark for each row, as terminated | truncated is.

        Raises:
            ValueError: there are not as many marks as rows, or no such row.
        """
        if rows is None:
            rows = range(self.num_rows)
        given = np.asarray(rows if isinstance(rows, np.ndarray | Tensor) else list(rows))
        if given.dtype == bool:
            if given.shape != (self.num_rows,):
                raise ValueError(
                    f"marks of shape {list(given.shape)} were given, but this file steps "
                    f"{self.num_rows} row(s), which need a mark each, [{self.num_rows}]"
                )
            given = given.nonzero()[0]
        if not all(0 <= row < self.num_rows for row in given):
            raise ValueError(
                f"rows {given.tolist()} were given, but this file steps rows 0 .. "
                f"{self.num_rows - 1}"
            )
        chosen = torch.as_tensor(given, dtype=torch.long)
        self._inputs["is_first"][chosen] = True
        # What the window's rings hold is masked, but a NaN of an observation would outlive that.
        for ring in self._rings:
            ring[chosen] = 0

    def act(
        self, observation: object, *, reward: float | NDArray[Any] | Tensor = 0.0
    ) -> NDArray[Any]:
        """The actions of one step, as the environment takes them.

        Args:
            observation: an array, or for a dict space its leaves by name, [B, ...]; with one row
                also without the first axis, and so is the action then.
            reward: what the last action brought, [B] or one for all; 0 at an episode's first step.

        Raises:
            ValueError: a leaf is missing, or has another shape or a type that would be rounded.
        """
        is_single = self._show(observation)
        self._inputs["reward"].copy_(torch.as_tensor(reward))
        noise = self._inputs.get("noise")
        if noise is not None:
            if self.about["noise"] == "uniform":
                noise.uniform_(generator=self._generator)
            else:
                noise.normal_(generator=self._generator)
        action, self.value = self._run(self._given)
        self._inputs["is_first"].fill_(value=False)
        array: NDArray[Any] = action.numpy()
        return array[0] if is_single else array

    def _show(self, observation: object) -> bool:
        """Copy the observation's leaves; whether they are one row's, without the first axis."""
        leaves = observation if isinstance(observation, Mapping) else {"obs": observation}
        singles = []
        for key in self._leaves:
            if key not in leaves:
                raise ValueError(
                    f"the observation has no {key!r}; it must have {', '.join(self._leaves)}"
                )
            leaf, place = leaves[key], self._inputs[f"observation/{key}"]
            if not isinstance(leaf, Tensor):
                leaf = torch.as_tensor(np.array(leaf))  # A copy: flipped pictures are no tensors.
            singles.append(self.num_rows == 1 and leaf.shape == place.shape[1:])
            if (leaf.shape != place.shape and not singles[-1]) or len(set(singles)) > 1:
                raise ValueError(
                    f"{key} of shape {list(leaf.shape)} was given, but this file takes "
                    f"{list(place.shape)}, or of one row all leaves without the first axis; export "
                    "with num_rows= for another number of rows"
                )
            place.copy_(leaf)
            if not place.is_floating_point() and not (place.to(leaf.dtype) == leaf).all():
                raise ValueError(
                    f"{key} of {leaf.dtype} was given, whose numbers {place.dtype} cannot hold, "
                    "which this file takes; give observations as the environment does (pictures "
                    "0 .. 255, not scaled)"
                )
        return singles[0]
