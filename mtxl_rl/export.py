"""A trained agent as one file: `python -m mtxl_rl.export checkpoint=RUN_DIR output=policy.onnx`.

The file holds a step of acting, from the observation to the action, with its weights. A .pt2 file
is machine code, compiled ahead of time by torch's AOTInductor; a .onnx file is a graph for
onnxruntime and other ONNX runtimes. `mtxl_rl.runtime.exported_policy` runs both.
"""

import statistics
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtxl_rl.agents.actor import Actor
from mtxl_rl.command import Command, options_of, run_command
from mtxl_rl.envs.names import check_choice
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.runtime.exported_policy import ExportedPolicy
from mtxl_rl.runtime.exported_step import export_policy, narrowed, prefill
from mtxl_rl.saved_agent import read_agent
from mtxl_rl.torso.torso_config import check_at_least
from mtxl_rl.tracking.cli import make_writable, print_line
from mtxl_rl.tracking.files import atomic_write

WEIGHTS = ("float32", "bfloat16")
SUFFIXES = (".pt2", ".onnx")
MAX_DIFFERENCE = 1e-4
"""Between the file's values and the policy's own, relative to the largest, that rounding makes."""


@dataclass(kw_only=True, slots=True)
class ExportConfig:
    """The options of `mtxl_rl.export`."""

    checkpoint: str = ""
    """A run's folder, a checkpoint file (.pt), or a policy.safetensors."""
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
            raise ValueError("checkpoint= is missing; give a run's folder")
        check_at_least(self, 1, "num_rows", "check_steps")
        check_choice("weights", self.weights, WEIGHTS)
        suffix = Path(self.output).suffix
        if suffix not in SUFFIXES:
            raise ValueError(f"output={self.output} must end in {' or '.join(SUFFIXES)}")
        if suffix == ".onnx" and self.weights != "float32":
            raise ValueError(
                f"weights={self.weights} needs output=*.pt2, but output={self.output} was given; "
                "ONNX files hold weights=float32"
            )


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
        compared = compare_with_policy(
            actor, ExportedPolicy(unchecked), num_steps=config.check_steps
        )
    print_line(f"{path}: {path.stat().st_size / 1e6:.1f} MB; {compared}")


def compare_with_policy(actor: Actor, exported: ExportedPolicy, *, num_steps: int) -> str:
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
