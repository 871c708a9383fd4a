"""Evaluate a trained agent: `python -m mtxl_rl.evaluate checkpoint=RUN_DIR`."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf
from rich.table import Table

from mtxl_rl.command import Command, options_of, run_command, value_of
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.registry import evaluation_env
from mtxl_rl.evaluation.ablations import evaluate_ablations
from mtxl_rl.evaluation.drawing import require_drawing
from mtxl_rl.evaluation.episode_table import show_episodes
from mtxl_rl.evaluation.evaluate_config import EvaluateConfig
from mtxl_rl.evaluation.pose_errors import PoseError
from mtxl_rl.evaluation.probe import AGES, Explained
from mtxl_rl.saved_agent import read_agent, saved_config
from mtxl_rl.tracking.cli import make_writable, print_line, show
from mtxl_rl.tracking.files import write_text


def run(config: EvaluateConfig) -> dict[str, list[dict[str, float]]]:
    """Evaluate under every setting of the memory, print a table, and return the episodes."""
    for option in ("video", "timeline", "probe"):
        if getattr(config, option):
            require_drawing(option)
    saved = read_agent(Path(config.checkpoint), which=config.which)
    print_line(f"{saved.path}: step {saved.step:,}")
    train = config.train_config(saved.config)
    names = _settings(config, train)
    for output in (config.output, config.video, config.timeline, config.probe):
        if output:
            make_writable(Path(output))
    results: dict[str, list[dict[str, float]]] = {}
    try:
        probed = evaluate_ablations(config, replace(saved, config=train), names, results)
        _print_probe(probed.explained)
        _print_pose_errors(probed.pose_errors)
    finally:  # An interrupted evaluation shows and keeps what was measured.
        if results:
            _print(results, train)
        if results and config.output:
            output_path = Path(config.output)
            if len(results) < len(names):  # Under another name, to keep an earlier complete file.
                output_path = output_path.with_suffix(f".partial{output_path.suffix}")
                print_line(
                    f"{output_path}: the settings that were finished before the evaluation stopped"
                )
            _write(output_path, config, train, saved.step, results)
    return results


def _settings(config: EvaluateConfig, train: TrainConfig) -> list[str]:
    """The settings of the memory to evaluate: only on for an agent without long-term memory."""
    names = config.memory
    if not train.torso.has_long_term and names != ["on"]:
        names = ["on"]
        print_line("This agent has no long-term memory: evaluating memory=on only.")
    return names


def evidence(train: TrainConfig, episodes: Sequence[dict[str, float]]) -> str:
    """Whether these episodes are evidence of long-term memory: not if the windows reach as far."""
    reach, longest = train.torso.receptive_field, int(max(e["length"] for e in episodes))
    if not train.torso.has_long_term:
        return f"no long-term memory: each layer's window together reaches {reach} steps back"
    if longest <= reach:
        return (
            f"not evidence of long-term memory: the longest episode has {longest} steps, and the "
            f"windows reach {reach} back"
        )
    return f"episodes of up to {longest} steps, of which the windows reach {reach} back"


def _write(
    path: Path,
    config: EvaluateConfig,
    train: TrainConfig,
    step: int,
    results: dict[str, list[dict[str, float]]],
) -> None:
    document = {
        "step": step,
        "config": OmegaConf.to_container(OmegaConf.structured(config)),
        "env": OmegaConf.to_container(OmegaConf.structured(train.env)),
        "precision": train.policy.for_device(train.torch_device()).precision,
        "evidence": evidence(train, next(iter(results.values()))),
        "episodes": results,
    }
    write_text(path, json.dumps(document))


def _print(results: dict[str, list[dict[str, float]]], train: TrainConfig) -> None:
    rows = results if train.torso.has_long_term else {"none": results["on"]}
    show_episodes(rows, title=train.env.name, label="long-term memory")
    print_line(evidence(train, next(iter(results.values()))))


def _print_probe(results: Sequence[Explained]) -> None:
    if not results:
        return
    table = Table(title="R^2 of the predictions, by steps since the target was last in view")
    for name in ("leaf", "memory"):
        table.add_column(name)
    for age in AGES:
        table.add_column(age, justify="right")
    for leaf, memory in dict.fromkeys((result.leaf, result.memory) for result in results):
        rows = [r for r in results if (r.leaf, r.memory) == (leaf, memory)]
        table.add_row(leaf, memory, *("" if math.isnan(r.r2) else f"{r.r2:.2f}" for r in rows))
    show(table)


def _print_pose_errors(results: Sequence[PoseError]) -> None:
    if not results:
        return
    table = Table(title="Root mean square error of the odometry's pose")
    for name in ("steps since the start", "heading (radians)", "place"):
        table.add_column(name, justify="right")
    for result in results:
        table.add_row(result.steps, f"{result.heading:.3f}", f"{result.place:.3f}")
    show(table)


USAGE = """\
python -m mtxl_rl.evaluate checkpoint=RUN_DIR [option=value ...]     evaluate a run
python -m mtxl_rl.evaluate checkpoint=RUN_DIR --help                 list its env.* options too

To train and evaluate the runs of a suite: python -m mtxl_rl.suite suite=NAME
"""


def _describe(overrides: list[str]) -> Command:
    """The command whose env.* options are those of the run's environment."""
    if value_of(overrides, "suite") is not None:
        raise ValueError(
            "option 'suite' is unknown; a suite trains agents before it evaluates them, with "
            f"python -m mtxl_rl.suite {' '.join(overrides)}"
        )
    source = value_of(overrides, "checkpoint")
    base = OmegaConf.structured(EvaluateConfig)
    if not source:
        return Command(usage=USAGE, options=options_of(EvaluateConfig), base=base)
    env = evaluation_env(saved_config(Path(source)).env)
    base.env = env
    options = options_of(EvaluateConfig, env=[type(env)])
    return Command(usage=USAGE, options=options, base=base)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(argv, describe=_describe, run=run)


if __name__ == "__main__":
    main()
