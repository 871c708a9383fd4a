"""A trained agent as one file: `python -m mtxl_rl.export checkpoint=RUN_DIR output=policy.onnx`.

The file holds a step of acting, from the observation to the action, with its weights. A .pt2 file
is machine code, compiled ahead of time by torch's AOTInductor; a .onnx file is a graph for
onnxruntime and other ONNX runtimes. `mtxl_rl.runtime.exported_policy` runs both.
"""

import json
import statistics
import time
import warnings
from collections.abc import Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mtxl_rl.agents.actor import Actor
from mtxl_rl.agents.heads import CategoricalHead
from mtxl_rl.agents.policy import Policy
from mtxl_rl.agents.transition import EPISODE_STEP, PolicyInputs, Shapes
from mtxl_rl.command import Command, options_of, run_command
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.runtime.compile import require_compiler
from mtxl_rl.runtime.exported_policy import (
    ABOUT,
    OUTPUTS,
    ExportedPolicy,
    made_for,
    require_onnx,
)
from mtxl_rl.saved_agent import read_agent
from mtxl_rl.torso import Cache, DecodeCache, MemoryTransformer
from mtxl_rl.torso.torso_config import check_at_least
from mtxl_rl.tracking.cli import make_writable, say
from mtxl_rl.tracking.files import atomic_write

# B rows: episodes that are stepped together.

WEIGHTS = ("float32", "bfloat16")
SUFFIXES = (".pt2", ".onnx")
MAX_DIFFERENCE = 1e-4
"""Between the file's values and the policy's own, relative to the largest, that rounding makes."""


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """The options of `mtxl_rl.export`."""

    checkpoint: str = ""
    """Folder of a run, a checkpoint file (.pt), or a policy.safetensors."""
    which: str = "latest"
    """Which checkpoint of a run's folder: latest or best."""
    output: str = "policy.pt2"
    """The file to write: .pt2 (machine code, by AOTInductor) or .onnx."""
    num_rows: int = 1
    """Rows that one call steps, B: one episode each."""
    weights: str = "float32"
    """Storage of the torso's weights and of its windows' keys and values: float32, or bfloat16,
    which halves the memory a step reads. All arithmetic is float32."""
    greedy: bool = False
    """Take the most probable action instead of sampling one."""
    check_steps: int = 200
    """Steps in which the file is compared with the policy, and timed."""

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if not self.checkpoint:
            raise ValueError("checkpoint= is missing; give the folder of a run")
        check_at_least(self, 1, "num_rows", "check_steps")
        if self.weights not in WEIGHTS:
            raise ValueError(
                f"weights={self.weights} is unknown; choose one of {', '.join(WEIGHTS)}"
            )
        suffix = Path(self.output).suffix
        if suffix not in SUFFIXES:
            raise ValueError(f"output={self.output} must end in {' or '.join(SUFFIXES)}")
        if suffix == ".onnx" and self.weights != "float32":
            raise ValueError(
                f"weights={self.weights} needs output=*.pt2, but output={self.output} was given; "
                "ONNX files hold weights=float32"
            )


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
        self.leaves = [key for key in shapes if key != EPISODE_STEP]
        head = policy.action_head
        self.cache = prefill(policy, num_rows)
        state = self.cache.mutable_tensors()
        if _writes_whole_segments(policy):
            assert isinstance(self.cache, DecodeCache)
            state["timeline"] = self.cache.timeline
        state["previous_action"] = torch.zeros(
            num_rows, *head.action_shape, dtype=head.action_dtype
        )
        if EPISODE_STEP in shapes:
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
        empty = {name: torch.empty_like(tensor) for name, tensor in self._empty.items()}
        cache = self.cache.with_tensors(tensors | empty)
        cache = self._with_timeline(cache, tensors.get("timeline"))
        outputs = self.policy.step_outputs(inputs, cache)
        action = self.policy.action_head.sample(outputs.action_parameters, noise)
        tensors["previous_action"].copy_(action)
        if EPISODE_STEP in tensors:
            tensors[EPISODE_STEP] += 1
        in_space = self.policy.action_head.in_space(action)
        return in_space, outputs.value, outputs.action_parameters

    @staticmethod
    def _with_timeline(cache: Cache, timeline: Tensor | None) -> Cache:
        """The cache with this timeline, or where no memory reads it, with one that is not kept."""
        if not isinstance(cache, DecodeCache):
            return cache
        if timeline is not None:
            return replace(cache, timeline=timeline)
        batch, num_layers, _, width = cache.timeline.shape
        return replace(
            cache,
            timeline=torch.zeros(batch, num_layers, 1, width),
            timeline_index=torch.zeros(1, dtype=torch.long),
        )


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


def _writes_whole_segments(policy: Policy) -> bool:
    """Whether a step reads the layer inputs of the whole segment, from the timeline."""
    torso = policy.torso
    return isinstance(torso, MemoryTransformer) and torso.writes_whole_segments


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


def run(config: ExportConfig) -> None:
    """Export a run's policy, compare the file's outputs with it, and print its speed.

    Raises:
        ValueError: there is no such run, or its torso cannot be exported.
        RuntimeError: the file computes something else than the policy.
    """
    source, path = Path(config.checkpoint), Path(config.output)
    saved = read_agent(source, which=config.which)
    precision = replace(saved.config.policy, precision="float32")
    saved = replace(saved, config=replace(saved.config, device="cpu", policy=precision))
    make_writable(path)
    torch.set_num_threads(1)
    generator = None if config.greedy else torch.Generator().manual_seed(0)
    with (
        closing(make_vector_env(saved.config.env, num_envs=config.num_rows, seed=0)) as env,
        atomic_write(path) as unchecked,
    ):
        policy = saved.build_policy(torch.device("cpu"))
        if config.weights == "bfloat16":
            policy = narrowed(policy)
        actor = Actor(env, policy, generator=generator)
        export_policy(
            policy, actor.shapes, unchecked, num_rows=config.num_rows, greedy=config.greedy
        )
        compared = compare(actor, ExportedPolicy(unchecked), num_steps=config.check_steps)
    say(f"{path}: {path.stat().st_size / 1e6:.1f} MB; {compared}")


def compare(actor: Actor, exported: ExportedPolicy, *, num_steps: int) -> str:
    """Step the policy and the file in the same environments; how they differ and what they take.

    Both draw the same noise, from generators of the same seed.

    Raises:
        RuntimeError: their actions or values differ by more than rounding.
    """
    actor.reset(seed=None)
    actor.cache = prefill(actor.policy, actor.env.num_envs)
    pairs, times = [], []
    for _ in range(num_steps):
        inputs = actor.inputs()
        begin = time.perf_counter()
        exported.reset(inputs.is_first.nonzero()[:, 0].tolist())
        action = exported.act(inputs.observation, reward=inputs.previous_reward)
        middle = time.perf_counter()
        actor.env_seconds = 0.0
        transition, _ = actor.step()
        times.append((time.perf_counter() - middle - actor.env_seconds, middle - begin))
        decision = transition.decision
        expected_action = actor.policy.action_head.to_env(decision.action)
        pairs.append((exported.value.numpy(), decision.value.numpy(), action, expected_action))
    values, expected, actions, taken = (np.stack(column) for column in zip(*pairs, strict=True))
    difference, action_difference = _difference(values, expected), _difference(actions, taken)
    if not max(difference, action_difference) <= MAX_DIFFERENCE:
        raise RuntimeError(
            f"the exported file does not compute what the policy does: in {num_steps} steps its "
            f"values differ by up to {difference:.1e} of the largest, its actions by "
            f"{action_difference:.1e}; torch {torch.__version__} compiles it wrongly, use another "
            "torch"
        )
    plain, file = (1000 * statistics.median(each) for each in zip(*times, strict=True))
    rows = actor.env.num_envs
    return (
        f"a step of {rows} row(s) takes {file:.2f} ms on one thread, and {plain:.2f} ms without "
        f"it; in {num_steps} steps the values differ by at most {difference:.1e} of the largest"
    )


def _difference(values: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest difference, relative to the largest expected number."""
    # Without the leaves of critic.observations, both values are NaN.
    values = np.nan_to_num(values.astype(np.float64))
    expected = np.nan_to_num(expected.astype(np.float64))
    return float(np.abs(values - expected).max() / (np.abs(expected).max() + 1e-6))


USAGE = """\
python -m mtxl_rl.export checkpoint=RUN_DIR [option=value ...]     export a run's policy to a file
"""


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    command = Command(usage=USAGE, options=options_of(ExportConfig), base=ExportConfig)
    run_command(argv, describe=lambda _: command, run=run)


if __name__ == "__main__":
    main()
