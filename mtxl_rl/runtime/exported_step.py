"""A policy's step as a module that exports: its memory is among its inputs.

`export_policy` writes it to a file, and `exported_policy` runs such files.
"""

import json
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mtxl_rl.agents.heads import CategoricalHead
from mtxl_rl.agents.policy import Policy
from mtxl_rl.agents.transition import EPISODE_STEP, PolicyInputs, Shapes
from mtxl_rl.runtime.compile import require_compiler
from mtxl_rl.runtime.exported_policy import ABOUT, OUTPUTS, made_for, require_onnx
from mtxl_rl.torso import Cache, DecodeCache

# B rows: episodes that are stepped together.


class NarrowLinear(nn.Module):
    """A linear map whose weights are kept in bfloat16 and multiplied in float32.

    As a product and a sum, which the compiler makes one loop over the weights as they are kept.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("kept", linear.weight.detach().bfloat16())
        self.kept: Tensor
        self.bias = linear.bias

    @property
    def weight(self) -> Float[Tensor, "o i"]:
        """The weights, widened."""
        return self.kept.float()

    def forward(self, x: Float[Tensor, "*batch i"]) -> Float[Tensor, "*batch o"]:
        """W x + b."""
        product = (x[..., None, :] * self.weight).sum(-1)
        return product if self.bias is None else product + self.bias


def narrowed(policy: Policy) -> Policy:
    """A copy of `policy` whose torso has `NarrowLinear` in place of each linear map."""
    policy = deepcopy(policy)
    for module in list(policy.torso.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, NarrowLinear(child))
    return policy


def prefill(policy: Policy, num_rows: int) -> Cache:
    """Cache of new episodes; with a `narrowed` torso, its window is kept in bfloat16."""
    # The shortest timeline, M + 1 steps.
    cache = policy.prefill(policy.torso.initial_state(num_rows), num_steps=1)
    is_narrow = any(isinstance(part, NarrowLinear) for part in policy.torso.modules())
    if not (is_narrow and isinstance(cache, DecodeCache)):
        return cache
    position = cache.position_embeddings
    return replace(
        cache,
        keys=tuple(part.bfloat16() for part in cache.keys),
        values=tuple(part.bfloat16() for part in cache.values),
        # Rotary positions are integers.
        position_embeddings=position.bfloat16() if position.is_floating_point() else position,
    )


class ExportedStep(nn.Module):
    """One step of a policy whose memory is among its inputs, and changed in place.

    `state` names the tensors that change; they are passed in its order.
    """

    def __init__(self, policy: Policy, shapes: Shapes, num_rows: int) -> None:
        super().__init__()
        self.policy = policy
        counts_steps = policy.config.episode_step
        self.leaves = [key for key in shapes if not (counts_steps and key == EPISODE_STEP)]
        self.cache = prefill(policy, num_rows)
        state = self.cache.mutable_tensors()
        if policy.torso.writes_whole_segments:  # From the timeline.
            assert isinstance(self.cache, DecodeCache)
            state["timeline"] = self.cache.timeline
        state["previous_action"] = policy.initial_action(num_rows)
        if counts_steps:
            state[EPISODE_STEP] = torch.zeros(num_rows, dtype=torch.long)
        # Position embeddings depend on the weights alone.
        constant = {"position_embeddings"}
        if "timeline" not in state:
            constant.add("timeline_index")
        self.state = {
            name: tensor
            for name, tensor in state.items()
            if tensor.numel() and name not in constant
        }
        """The tensors that change, as they are when episodes start."""
        self._empty = {name: tensor for name, tensor in state.items() if not tensor.numel()}

    def forward(
        self,
        observation: list[Tensor],
        reward: Float[Tensor, " B"],
        is_first: Bool[Tensor, " B"],
        noise: Tensor | None,
        state: list[Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The action in the environment's action space, the value, the distribution's parameters.

        The order is that of `OUTPUTS`.
        """
        tensors = dict(zip(self.state, state, strict=True))
        leaves = dict(zip(self.leaves, observation, strict=True))
        if EPISODE_STEP in tensors:
            tensors[EPISODE_STEP] *= ~is_first
            leaves[EPISODE_STEP] = tensors[EPISODE_STEP]
        inputs = PolicyInputs(leaves, tensors["previous_action"], reward, is_first)
        # A step may write to them, though they hold nothing; torch.onnx refuses to write constants.
        empty = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype)
            for name, tensor in self._empty.items()
        }
        cache = self.cache.with_tensors(self._unread_timeline() | tensors | empty)
        outputs = self.policy.step_outputs(inputs, cache)
        action = self.policy.action_head.sample(outputs.action_parameters, noise)
        tensors["previous_action"].copy_(action)
        if EPISODE_STEP in tensors:
            tensors[EPISODE_STEP] += 1
        in_space = self.policy.action_head.in_space(action)
        return in_space, outputs.value, outputs.action_parameters

    def _unread_timeline(self) -> dict[str, Tensor]:
        """A timeline that is not kept, for a step whose memories do not read it."""
        if "timeline" in self.state or not isinstance(self.cache, DecodeCache):
            return {}
        batch, num_layers, _, width = self.cache.timeline.shape
        return {
            "timeline": torch.zeros(batch, num_layers, 1, width),
            "timeline_index": torch.zeros(1, dtype=torch.long),
        }


class FunctionalStep(nn.Module):
    """An `ExportedStep` that returns the next memory, and keeps the one it was called with."""

    def __init__(self, step: ExportedStep) -> None:
        super().__init__()
        self.step = step

    def forward(
        self,
        observation: list[Tensor],
        reward: Float[Tensor, " B"],
        is_first: Bool[Tensor, " B"],
        noise: Tensor | None,
        state: list[Tensor],
    ) -> tuple[Tensor, ...]:
        """The outputs of `ExportedStep`, then the next memory in the order of its `state`."""
        state = [tensor.clone() for tensor in state]
        return *self.step(observation, reward, is_first, noise, state), *state


def export_policy(
    policy: Policy, shapes: Shapes, path: Path, *, num_rows: int = 1, greedy: bool = False
) -> None:
    """Write a step of `policy` to `path`, for the CPU.

    Args:
        policy: with weights of float32, on the CPU; `narrowed` for such in bfloat16.
        shapes: of its observations' leaves; see `observation_shapes`.
        path: ends in .pt2 (compiled for one thread) or .onnx.
        num_rows: episodes that one call steps.
        greedy: take the most probable action instead of drawing one.

    Raises:
        ValueError: there is no C++ compiler, which .pt2 needs.
        ImportError: the packages that .onnx needs are missing.
    """
    policy = deepcopy(policy).eval().requires_grad_(requires_grad=False)
    policy.config = replace(policy.config, precision="float32")
    policy.decoder = policy.critic = None
    step = ExportedStep(policy, shapes, num_rows)
    head, leaves = policy.action_head, [shapes[key] for key in step.leaves]
    observation = [torch.zeros(num_rows, *shape, dtype=dtype) for shape, dtype in leaves]
    is_first = torch.ones(num_rows, dtype=torch.bool)
    noise = None if greedy else head.noise(num_rows, torch.Generator())
    memories = list(step.state.values())
    inputs = (observation, torch.zeros(num_rows), is_first, noise, memories)
    names = [f"observation/{key}" for key in step.leaves] + ["reward", "is_first"]
    names += ([] if greedy else ["noise"]) + [f"memory/{name}" for name in step.state]
    tensors = [part for part in tree_leaves(inputs) if part is not None]
    about = {
        "inputs": [
            [name, list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
            for name, tensor in zip(names, tensors, strict=True)
        ],
        "outputs": list(OUTPUTS),
        "noise": "uniform" if isinstance(head, CategoricalHead) else "normal",
    }
    write = _write_onnx if path.suffix == ".onnx" else _write_package
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of torch's own code.
        write(step, inputs, path, about)


def _write_package(
    step: ExportedStep, inputs: tuple[Any, ...], path: Path, about: dict[str, Any]
) -> None:
    """Compile the step by AOTInductor."""
    require_compiler(torch.device("cpu"))
    torch._inductor.aoti_compile_and_package(
        torch.export.export(step, inputs, strict=False),
        package_path=str(path),
        inductor_configs={
            "aot_inductor.metadata": {ABOUT: json.dumps(about | {"made_for": made_for()})}
        },
    )


def _write_onnx(
    step: ExportedStep, inputs: tuple[Any, ...], path: Path, about: dict[str, Any]
) -> None:
    """Translate the step to ONNX; its next memory is among the outputs."""
    require_onnx("onnx", "onnxscript", "onnxruntime")
    names = [name for name, _, _ in about["inputs"]]
    outputs = [*OUTPUTS, *(f"next_{name}" for name in names if name.startswith("memory/"))]
    program = torch.onnx.export(
        FunctionalStep(step), inputs, dynamo=True, input_names=names, output_names=outputs,
        verbose=False,
    )  # fmt: skip
    assert program is not None
    program.model.metadata_props[ABOUT] = json.dumps(about | {"outputs": outputs})
    program.save(path)
