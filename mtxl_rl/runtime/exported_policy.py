"""Run an agent from a file that `mtxl_rl.export` wrote, without a compiler and the agent's classes.

C++ runs a .pt2 file with torch's AOTIModelPackageLoader, and a .onnx file with onnxruntime.
`ExportedPolicy.about` lists a file's inputs in order, with shapes and dtypes. Those named
memory/... start as zeros; is_first marks the rows whose episode starts, and noise is new for each
step. A .pt2 file updates the memory in place; a .onnx file returns it as next_memory/....
"""

import importlib.util
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
"""Key of `ExportedPolicy.about` in the file's metadata."""


OUTPUTS = ("action", "value", "action_parameters")
"""Outputs of a step; a .onnx file has the next memory after them."""

Run = Callable[[list[Tensor]], list[Tensor]]
"""A file's step: from its inputs to `OUTPUTS`; updates the inputs named memory/... in place."""


def require_onnx(*packages: str) -> None:
    """Raise an ImportError that names the extra, if one of the packages is missing."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f".onnx files need {' and '.join(missing)}: pip install 'mtxl_rl[onnx]'")


def _load_package(path: Path) -> tuple[dict[str, Any], Run]:
    """The description in a .pt2 file, and its step."""
    try:
        package = torch._inductor.aoti_load_package(str(path))
        about: dict[str, Any] = json.loads(package.loader.get_metadata()[ABOUT])
    except (RuntimeError, KeyError) as error:
        raise _refusal(path, error) from error
    if about["made_for"] != made_for():
        raise ValueError(
            f"{path} is made for {about['made_for']}, and this is {made_for()}; export the run here"
        )
    # Without the package's own wrapper, which takes a tenth of a millisecond.
    return about, package.loader.run


def _load_onnx(path: Path) -> tuple[dict[str, Any], Run]:
    """The description in a .onnx file, and its step on one thread."""
    require_onnx("onnxruntime")
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as errors

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        about: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map[ABOUT])
    except (errors.InvalidProtobuf, errors.Fail, KeyError) as error:
        raise _refusal(path, error) from error
    names = [name for name, _, _ in about["inputs"]]

    def run(inputs: list[Tensor]) -> list[Tensor]:
        tensors = dict(zip(names, inputs, strict=True))
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in tensors.items()})
        named = dict(zip(about["outputs"], map(torch.from_numpy, outputs), strict=True))
        for name, tensor in tensors.items():
            if name.startswith("memory/"):
                tensor.copy_(named[f"next_{name}"])
        return [named[name] for name in OUTPUTS]

    return about, run


def _refusal(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is not a file that mtxl_rl.export wrote: {str(error).splitlines()[0]}"
    )


def made_for() -> str:
    """Version of torch and kind of processor that a file made here runs on."""
    return f"torch {torch.__version__}, {platform.machine()}, {cpu.get_cpu_capability()}"


class ExportedPolicy:
    """A policy's step from a file that `mtxl_rl.export` wrote, with the memory of its episodes.

    ```python
    agent = ExportedPolicy("policy.pt2")
    action = agent.act(observation)                  # an episode's first step
    action = agent.act(observation, reward=reward)   # with the last action's reward
    agent.reset()                                    # the next step starts an episode
    ```

    Args:
        path: the file, .pt2 or .onnx.
        seed: of the actions that are drawn.

    Raises:
        ValueError: the file is not an exported policy; or it is a .pt2 file made for another
            machine or torch.
        FileNotFoundError: there is no file.
        ImportError: it is a .onnx file, and onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, *, seed: int = 0) -> None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}")
        loaders = {".pt2": _load_package, ".onnx": _load_onnx}
        load = loaders.get(Path(path).suffix)
        if load is None:
            raise ValueError(f"{path} must end in {' or '.join(loaders)}")
        self.about, self._run = load(Path(path))
        """The file's inputs and outputs, and its step."""
        self._inputs = {
            name: torch.zeros(shape, dtype=getattr(torch, dtype))
            for name, shape, dtype in self.about["inputs"]
        }
        self._given = list(self._inputs.values())
        self._leaves = [
            name.removeprefix("observation/")
            for name in self._inputs
            if name.startswith("observation/")
        ]
        self._generator = torch.Generator().manual_seed(seed)
        self.value: Float[Tensor, " B"] = torch.zeros(self.num_rows)
        """Value estimates of the last step."""
        self.action_parameters: Float[Tensor, "B n"] = torch.zeros(self.num_rows, 0)
        """The last step's log-probabilities of each choice, or means and log deviations."""
        self.reset()

    @property
    def num_rows(self) -> int:
        """Episodes that one call steps, B."""
        return len(self._inputs["is_first"])

    def reset(self, rows: Iterable[int] | NDArray[Any] | Tensor | None = None) -> None:
        """Start an episode with the next step, in `rows` or in all of them.

        Args:
            rows: indices, or a mask [B] such as terminated | truncated.

        Raises:
            ValueError: the mask has another shape, or a row does not exist.
        """
        if rows is None:
            rows = range(self.num_rows)
        chosen = np.asarray(rows if isinstance(rows, np.ndarray | Tensor) else list(rows))
        if chosen.dtype == bool:
            if chosen.shape != (self.num_rows,):
                raise ValueError(
                    f"rows is a mask of shape {list(chosen.shape)}, but this file steps "
                    f"{self.num_rows} row(s); give a mask of shape [{self.num_rows}]"
                )
            chosen = chosen.nonzero()[0]
        if not all(0 <= row < self.num_rows for row in chosen):
            raise ValueError(
                f"rows={chosen.tolist()} are not all legal: this file steps rows 0 .. "
                f"{self.num_rows - 1}"
            )
        self._inputs["is_first"][torch.as_tensor(chosen, dtype=torch.long)] = True

    def act(
        self, observation: object, *, reward: float | NDArray[Any] | Tensor = 0.0
    ) -> NDArray[Any] | np.generic:
        """The actions of one step, as the environment takes them; a Discrete row's is a number.

        Args:
            observation: an array, or for a dict space its leaves by name, [B, ...]; with one row
                also without the first axis, and so is the action then.
            reward: reward of the last action, [B] or one for all; ignored at a first step.

        Raises:
            ValueError: a leaf is missing, has another shape, or would be rounded.
        """
        is_single = self._show(observation)
        self._inputs["reward"].copy_(torch.as_tensor(reward))
        noise = self._inputs.get("noise")
        if noise is not None:
            if self.about["noise"] == "uniform":
                noise.uniform_(generator=self._generator)
            else:
                noise.normal_(generator=self._generator)
        action, self.value, self.action_parameters = self._run(self._given)
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
            leaf, target = leaves[key], self._inputs[f"observation/{key}"]
            if not isinstance(leaf, Tensor):
                leaf = torch.as_tensor(np.array(leaf))  # A copy, for flipped pictures.
            singles.append(self.num_rows == 1 and leaf.shape == target.shape[1:])
            if (leaf.shape != target.shape and not singles[-1]) or len(set(singles)) > 1:
                raise ValueError(
                    f"{key} of shape {list(leaf.shape)} was given, but this file takes "
                    f"{list(target.shape)}, or of one row all leaves without the first axis; "
                    "export with num_rows= for another number of rows"
                )
            target.copy_(leaf)
            if not target.is_floating_point() and not (target.to(leaf.dtype) == leaf).all():
                raise ValueError(
                    f"{key} of {leaf.dtype} was given, whose numbers {target.dtype} cannot hold, "
                    "which this file takes; give observations as the environment does (pictures "
                    "0 .. 255, not scaled)"
                )
        return singles[0]
