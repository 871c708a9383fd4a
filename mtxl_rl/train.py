"""Train an agent: `python -m mtxl_rl.train env=MemoryMaze`, or `mtxl_rl.train("MemoryMaze")`.

This module parses options. The run itself is in `training.trainer`.
"""

import inspect
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
from hydra.core.hydra_config import HydraConfig

from mtxl_rl.agents.ppo_config import PPOConfig
from mtxl_rl.command import (
    Command,
    as_override,
    compose_command,
    options_of,
    run_command,
    value_of,
)
from mtxl_rl.compose import (
    GROUPS,
    device_overrides,
    options_without_effect,
    torso_preset,
    train_command,
)
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.backends.custom_env import (
    CustomEnv,
    CustomEnvConfig,
    default_num_envs,
    describe_custom,
)
from mtxl_rl.runtime.devices import world_size
from mtxl_rl.runtime.distributed import (
    STOPPED,
    check_devices,
    choose_num_processes,
    is_first_process,
    launch,
)
from mtxl_rl.saved_agent import run_folder, saved_config
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.cli import print_line, quiet
from mtxl_rl.training.callbacks import Callback
from mtxl_rl.training.ray_trainer import train_with_ray
from mtxl_rl.training.trained_run import TrainedRun
from mtxl_rl.training.trainer import new_run_dir, run_until_signal

USAGE = """\
python -m mtxl_rl.train env=NAME [option=value ...]           train an agent
python -m mtxl_rl.train env=NAME --help                       list env.* options too
python -m mtxl_rl.train env=NAME --cfg job                    show a run's values
python -m mtxl_rl.train env=NAME -m seed=0,1 'run_dir=runs/${seed}'     train several, one by one
python -m mtxl_rl.train env=NAME launcher=ray num_processes=N train in workers of Ray Train
python -m mtxl_rl.train resume=RUN_DIR [option=value ...]     continue a run

The defaults below are those of the library. env=, model= and torso= change some of them.
"""


EXPECTED = {
    "TMaze": "success 0.98 after 61,000 to 70,000 steps, in five seeds.",
    "GridMemoryMaze": "a return of 56 to 57 after 10 million steps, in two seeds of an earlier "
    "version; the best is 93.",
    "GridMemoryMaze-GPS": "a return of 75 after 4 million steps, in one seed; the best is 93.",
    "GridMemoryMaze-GPS-13x13": "a return of 138 after 6.5 million steps, in one seed; the best is "
    "200.",
    "MemoryMaze-odometry": "a return of 23 after 16 million steps, in one seed; the explorer "
    "has 29.",
    "MemoryMaze-GPS": "a return of 22 after 12 million steps, in one seed; the explorer has 29.",
    "MortarMayhem": "a return of 0.40 after 5 million steps, in an earlier version; not solved.",
    "ActiveTMaze": "no agent has learned this task with these options.",
    "MysteryPath": "no agent has learned this task with these options.",
    "Concentration": "no agent has been trained on this task yet; its options are guesses.",
    "MemoryMaze": "a return of 7.4 to 7.7 after 3 million steps, in two seeds of an earlier "
    "version; random play: 0.2.",
}
"""Results with the default options, by env=: see RESULTS.md. GridMemoryMaze, MemoryMaze and
MortarMayhem were measured by earlier versions, before ppo.kl_coef and ppo.advantage_floor."""
_CHANGES_RESULTS = (
    "env.", "torso", "model", "policy.", "critic.", "auxiliary.", "teacher.", "ppo."
)  # fmt: skip
_LONG = 1_000_000
_SHORT_EXAMPLE = "python -m mtxl_rl.train env=TMaze total_steps=150000"


def _describe(overrides: list[str]) -> Command:
    """The command of a new run; with resume=, one whose defaults are the saved run's values."""
    source = value_of(overrides, "resume")
    if source is None:
        overrides[:0] = device_overrides(overrides)
        return train_command(overrides, usage=USAGE)
    if not source:
        raise ValueError(
            "resume= is empty; give a run's folder or a checkpoint in it, or remove it to "
            "train a new run"
        )
    for part in overrides:
        if part.startswith((*(f"{group}=" for group in GROUPS), "torso.", "env.name=", "seed=",
                            "initial_weights=")):  # fmt: skip
            raise ValueError(
                f"Cannot change {part.partition('=')[0]} when resuming. Remove it, or start a new "
                "run."
            )
    saved = replace(saved_config(Path(source)), run_dir=str(run_folder(Path(source)) or ""))
    return Command(usage=USAGE, options=options_of(TrainConfig, env=[type(saved.env)]), base=saved)


def _plan(config: TrainConfig, overrides: Sequence[str]) -> str:
    """A run's plan, printed before anything slow begins."""
    iterations = -(-config.total_steps // config.steps_per_iteration)
    device = config.torch_device()
    precision = config.policy.for_device(device).precision
    compiled = ", compiled" if config.compile is True else ""
    compiling = ", and whether compiling saves time" if config.compile == "auto" else ""
    lines = [
        f"{config.env.name}: {config.total_steps:,} steps in {iterations:,} iterations of "
        f"{config.num_envs} environments x {config.ppo.rollout_length} steps; torso="
        f"{torso_preset(config.torso)} model={config.model}, {device} in {precision}{compiled}",
        f"The first iteration shows how long it takes on this machine (ETA){compiling}. Ctrl-C "
        "saves and stops.",
    ]
    preset = value_of(overrides, "env")
    names = [part.lstrip("+~").partition("=")[0] for part in overrides]
    if preset in EXPECTED and not any(name.startswith(_CHANGES_RESULTS) for name in names):
        lines.append(f"What to expect: {EXPECTED[preset]}")
    if config.total_steps >= _LONG:
        lines.append(f"For a result in minutes: {_SHORT_EXAMPLE}")
    return "\n".join(lines)


def _run_command(config: TrainConfig) -> None:
    overrides = HydraConfig.get().overrides.task
    num_processes, reason = _num_processes(config)
    if is_first_process():
        if not config.dry_run:
            print_line(f"num_processes={num_processes}: {reason}\n{_plan(config, overrides)}")
        for option, cause in options_without_effect(config, overrides):
            print_line(f"{option} has no effect with {cause}")
    starts_processes = world_size() == 1 and not config.dry_run
    if starts_processes and config.launcher == "ray":
        signal_number = train_with_ray(config)
    elif starts_processes and num_processes > 1:
        _launch(config, overrides, num_processes=num_processes)
        return
    else:
        _, signal_number = run_until_signal(config)
    if signal_number:  # `train && evaluate` stops here, and so does a sweep.
        raise SystemExit(128 + signal_number)


def _launch(config: TrainConfig, overrides: Sequence[str], *, num_processes: int) -> None:
    """Train in several processes; when one fails, name the checkpoint to continue from."""
    check_devices(num_processes, config.torch_device())
    run_dir = Path(config.run_dir or new_run_dir(config))
    others = [part for part in overrides if not part.startswith("run_dir=")]
    argv = ["-m", "mtxl_rl.train", *others, f"run_dir={run_dir}"]
    exit_code = launch(argv, num_processes=num_processes)
    newest = checkpoint.latest(run_dir)
    if exit_code and exit_code not in STOPPED and newest is not None:
        sys.stderr.write(
            f"the last checkpoint is {newest}; continue with: python -m mtxl_rl.train "
            f"resume={run_dir}\n"
        )
    if exit_code:
        raise SystemExit(exit_code)


def _num_processes(config: TrainConfig) -> tuple[int, str]:
    """The number of processes, and the reason; 0 where Ray's cluster decides it."""
    if world_size() > 1:
        return world_size(), "torchrun, or another launcher, started them"
    if config.launcher == "ray" and not config.num_processes:
        return 0, "as many as Ray's cluster has room for"
    if config.num_processes:
        return config.num_processes, "set in the options; 0 lets the machine decide"
    return choose_num_processes(
        config.legal_processes(), num_envs=config.num_envs, device=config.torch_device()
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    run_command(argv, describe=_describe, run=_run_command)


def train(
    env: str | CustomEnv | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    eval_env: CustomEnv | None = None,
    callbacks: Callback | Sequence[object] = (),
    verbose: bool = True,
    **top_level: Any,  # noqa: ANN401 - options of any type
) -> TrainedRun:
    """Train an agent in this process, as the command line does.

    ```python
    run = mtxl_rl.train("TMaze", {"env.corridor_length": 20}, total_steps=100_000)
    print(run.metrics["charts/episodic_return"], run.agent.evaluate(episodes=100))
    ```

    Args:
        env: A task's name, an id of Gymnasium, an environment, a vector environment, or a function
            that makes an environment. None: the environment of the run that `resume=` names.
        options: Options by their names on the command line, as "ppo.learning_rate".
        eval_env: An environment for `eval_every=`; None: those that `env` names or makes.
        callbacks: `mtxl_rl.Callback`, or objects with some of its methods.
        verbose: Print what the command line prints.
        top_level: Options whose names have no dot, as total_steps=100_000.

    Raises:
        ValueError: an option or the environment is not legal.
        KeyboardInterrupt: Ctrl-C stopped the run, after it was saved.
        SystemExit: SIGTERM stopped it, after it was saved.

    Returns:
        The run's folder, metrics and agent.
    """
    config, custom = _config(env, {**(options or {}), **top_level})
    is_launched = config.launcher == "ray" or config.num_processes not in (0, 1, world_size())
    if config.dry_run or is_launched:
        raise ValueError(
            f"dry_run={config.dry_run}, launcher={config.launcher} and num_processes="
            f"{config.num_processes} are options of the command line, and mtxl_rl.train() trains "
            "in this process; remove them, or run python -m mtxl_rl.train, or start this script "
            "with torchrun"
        )
    calls = callbacks if isinstance(callbacks, Sequence) else [callbacks]
    with quiet(not verbose):
        run_dir, signal_number = run_until_signal(
            config, env=custom, eval_env=eval_env, callbacks=calls
        )
    if signal_number == signal.SIGINT:
        raise KeyboardInterrupt(f"saved; continue with mtxl_rl.train(resume={str(run_dir)!r})")
    if signal_number:
        raise SystemExit(128 + signal_number)
    return TrainedRun.read(run_dir)


def _config(
    env: str | CustomEnv | None, values: Mapping[str, Any]
) -> tuple[TrainConfig, CustomEnv | None]:
    """A run's options from Python, and the environment that Python made, if any."""
    custom = None if isinstance(env, str) else env
    defaults = dict[str, Any]()
    if isinstance(env, str):
        is_id = env in gymnasium.registry or ":" in env
        defaults = {"env": "Gymnasium", "env.id": env} if is_id else {"env": env}
    elif custom is not None and "resume" not in values:
        defaults = {"env": "Gymnasium", "ppo.num_minibatches": 1}
        num_envs = default_num_envs(custom)
        defaults |= {} if num_envs is None else {"num_envs": num_envs}
    overrides = [
        f"{name}={value}" if name in GROUPS else as_override(name, value)
        for name, value in {**defaults, **values}.items()
    ]
    config = compose_command(_describe(overrides), overrides)
    if custom is None:
        return config, None
    if "resume" not in values:
        if "ppo.num_minibatches" not in values:  # As many as divide the spans of few environments.
            spans = config.num_envs * (config.ppo.rollout_length // config.span_length)
            most = PPOConfig().num_minibatches
            config.ppo.num_minibatches = max(n for n in range(1, most + 1) if spans % n == 0)
        config.env = CustomEnvConfig(description=describe_custom(custom))
    elif not isinstance(config.env, CustomEnvConfig):
        raise ValueError(
            f"the run resume={config.resume} has the environment {config.env.name}; call "
            "mtxl_rl.train(resume=...) without an environment, or start a new run"
        )
    return config, custom


class _TrainModule(ModuleType):
    """This module can be called: `mtxl_rl.train` is both the command's module and `train`."""

    __signature__ = inspect.signature(train)

    def __call__(self, *arguments: Any, **options: Any) -> TrainedRun:  # noqa: ANN401
        """Call `train`."""
        return train(*arguments, **options)


sys.modules[__name__].__class__ = _TrainModule

if __name__ == "__main__":
    # Launchers of sweeps pickle functions; those of the imported module by their names.
    from mtxl_rl.train import main as imported_main

    imported_main()
