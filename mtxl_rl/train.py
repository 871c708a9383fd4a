"""Train an agent: `python -m mtxl_rl.train env=MemoryMaze`.

`run` is the whole of a training run, top to bottom; `main` is the command line around it.
"""

import shutil
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mtxl_rl.agents.collector import Actor, Collector
from mtxl_rl.agents.ppo import PPO, NonFiniteLossError
from mtxl_rl.build import build_policy, bytes_table, predicted_bytes, rollout_shape
from mtxl_rl.config import (
    GROUPS,
    TrainConfig,
    check_overrides,
    choices,
    compose_config,
    device_overrides,
    load_config,
    register_schemas,
    run_folder,
    save_config,
    to_config,
    unread_options,
    values,
)
from mtxl_rl.envs.groups import EnvGroups
from mtxl_rl.envs.registry import stream_seed
from mtxl_rl.runtime.profiler import RunProfile
from mtxl_rl.torso import save_torso
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.cli import console, one_sentence_errors, say, stop_requests
from mtxl_rl.tracking.files import run_lock
from mtxl_rl.tracking.metrics import METRICS_FILE, MetricsLogger
from mtxl_rl.tracking.progress import Progress

_NAMED = (*(f"{group}=" for group in GROUPS), "env.name=")
"""How the options begin that choose a task or a torso."""


class Run:
    """The parts of a training run, and how they are saved and restored."""

    def __init__(self, config: TrainConfig, env: EnvGroups) -> None:
        torch.manual_seed(config.seed)
        torch.set_num_threads(1)
        # Convolutions of float32 are TF32 on a GPU otherwise, and acting differs from learning.
        torch.backends.cudnn.allow_tf32 = False
        device = config.torch_device()
        self.config = config
        self.env = env
        self.policy = build_policy(config, env).to(device)
        if config.compile:
            self.policy.compile_acting()
            self.policy.compile_learning()
        if config.cuda_graph:
            self.policy.replay_acting()
        self.agent = PPO(self.policy, config.ppo, num_threads=config.num_threads)
        if config.cuda_graph:
            self.agent.replay_learning()
        shape = rollout_shape(config, env.single_observation_space, self.policy)
        generator = torch.Generator(device).manual_seed(config.seed)
        actors = [Actor(group, self.policy, shapes=shape.observation) for group in env.groups]
        self.collector = Collector(actors, shape=shape, generator=generator)
        self.profile = RunProfile(self.collector, self.agent) if config.profile else None
        held, predicted = self.collector.rollout.nbytes_by_part(), shape.bytes_by_part()
        assert held == predicted, (held, predicted)
        self.step = 0

    def iterate(self) -> dict[str, float]:
        """One rollout and what is learned from it."""
        begun = time.perf_counter()
        rollout, times = self.collector.collect()
        collected = time.perf_counter()
        metrics = self.agent.update(rollout, progress=self.step / self.config.total_steps)
        self.step += self.config.steps_per_iteration
        done = time.perf_counter()
        steps, learning = self.config.steps_per_iteration, done - collected
        samples = steps * metrics["ppo/epochs"]
        if self.profile is not None:
            self.profile.count(num_steps=steps, num_samples=samples)
        return {
            **self.collector.episodes.means(),
            **metrics,
            **times,
            "time/learn_seconds": learning,
            "time/env_steps_per_second": steps / (done - begun),
            "speed/env_steps_per_second": steps / times["time/env_seconds"],
            "speed/act_steps_per_second": steps / times["time/act_seconds"],
            "speed/learn_samples_per_second": samples / learning,
        }

    def save(self, run_dir: Path) -> Path:
        """Write a checkpoint of everything that the next iteration depends on."""
        # Of a few episodes a mean may be the best of all for ever.
        episodes = self.collector.episodes
        score = episodes.means().get("episode/return") if episodes.is_full else None
        state: checkpoint.TrainingState = {
            "step": self.step,
            "agent": self.agent.state_dict(),
            "collector": self.collector.state_dict(),
            "env": _plain(self.env.get_state()) if self.env.supports_state else None,
        }
        return checkpoint.save(run_dir, state, score=score, keep_last=self.config.keep_checkpoints)

    def start(self, *, seed: int | None) -> None:
        """Begin an episode in every environment; see `Actor.reset`."""
        steps = self.config.steps_to_stagger
        if steps:
            say(
                f"{steps:,} random steps in each of {self.config.num_envs} environments spread "
                "them over their episodes (stagger_steps=0: none)"
            )
        self.collector.reset(seed=seed, stagger_steps=steps)
        if self.profile is not None:
            self.profile.profile.resume()

    def restore(self, state: checkpoint.TrainingState) -> None:
        """Go on from a checkpoint; environments that cannot be saved start new episodes."""
        try:
            self.agent.load_state_dict(state["agent"])
            self.step = state["step"]
            if state["env"] is None:
                say(
                    "These environments cannot be saved: they start new episodes, and the "
                    "memories are emptied. Weights, optimiser and schedules go on."
                )
                self.collector.generator.set_state(state["collector"]["generator"])
                self.collector.episodes.load_state_dict(state["collector"]["episodes"])
            else:
                self.collector.load_state_dict(state["collector"])
                self.env.set_state(_arrays(state["env"]))
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint does not fit this configuration ({_detail(error)}); resume with "
                "the options it was trained with: num_envs, env.* and what policy.* adds weights "
                "for cannot change in a run that goes on"
            ) from error
        if state["env"] is None:
            self.start(seed=stream_seed(self.config.seed, self.step))


def run(config: TrainConfig) -> Path:
    """Train until `total_steps`, or until asked to stop; the run's folder.

    Raises:
        ValueError: a setting, the environment's spaces or a checkpoint is not legal.
        OSError: the disk is full or the folder cannot be written.
        NonFiniteLossError: learning diverged; the message names the last checkpoint.
    """
    return _run(config)[0]


def _run(config: TrainConfig) -> tuple[Path, bool]:
    """What `run` does; its folder, and whether it was asked to stop."""
    config.check_device()
    num_envs, num_groups = (1, 1) if config.dry_run else (config.num_envs, config.env_groups)
    seed = stream_seed(config.seed, 0)
    env = EnvGroups(config.env, num_envs=num_envs, num_groups=num_groups, seed=seed)
    try:
        if config.dry_run:
            console.print(bytes_table(predicted_bytes(config, env)), highlight=False)
            return Path(), False
        run_dir = Path(config.run_dir or _new_run_dir(config))
        with run_lock(run_dir):
            this = _begin(config, env, run_dir)
            was_stopped = _loop(this, run_dir)
            if not (run_dir / "config.yaml").exists():  # Nothing was left, in another folder.
                save_config(config, run_dir / "config.yaml")
            save_torso(this.policy.torso, run_dir / "policy.safetensors", within=this.policy)
        return run_dir, was_stopped
    finally:
        env.close()


def _begin(config: TrainConfig, env: EnvGroups, run_dir: Path) -> Run:
    """The parts of a run, new or as their checkpoint was; a new one leaves its config."""
    state = _load(config, run_dir) if config.resume else None
    if state is None and (run_dir / "config.yaml").exists():
        go_on = f"go on with resume={run_dir}"
        if checkpoint.latest(run_dir) is None:
            go_on = "it was stopped before its first checkpoint: delete it"
        raise ValueError(
            f"run_dir={run_dir} already holds a run; {go_on}, or choose another run_dir"
        )
    this = Run(config, env)
    if state is not None:
        this.restore(state)
    else:
        this.start(seed=None)
        save_config(config, run_dir / "config.yaml")
    return this


def _load(config: TrainConfig, run_dir: Path) -> checkpoint.TrainingState:
    """The state to go on from; a run that goes on in another folder takes its metrics along."""
    source = Path(config.resume)
    state = checkpoint.load(source)
    old = run_folder(source)
    changed = _changed(config, load_config(old))
    if state["step"] >= config.total_steps:
        done = f"{source} has {state['step']:,} of total_steps={config.total_steps:,}"
        if changed:
            raise ValueError(
                f"{done}: nothing is left to train, and {', '.join(changed)} would have no effect; "
                "give total_steps= above that"
            )
        say(f"{done}: nothing is left to train; total_steps= above that goes on")
    if run_dir.resolve() != old.resolve():
        if (run_dir / "config.yaml").exists():
            raise ValueError(f"run_dir={run_dir} already holds a run; choose another run_dir")
        shutil.copy(old / METRICS_FILE, run_dir)
        return state
    newest = checkpoint.latest(run_dir)
    if newest is not None and checkpoint.step_of(newest) > state["step"]:
        raise ValueError(
            f"resume={source} is at step {state['step']:,}, and this run went on to {newest}; give "
            "run_dir=NEW_FOLDER to go on from there in a folder of its own"
        )
    return state


def _changed(config: TrainConfig, saved: TrainConfig) -> list[str]:
    """The options by which a run that goes on is to differ from what it was."""
    own = ("resume", "run_dir", "total_steps")
    theirs, mine = (values(OmegaConf.structured(each)) for each in (saved, config))
    return [key for key in mine if key not in own and mine[key] != theirs.get(key)]


def _loop(this: Run, run_dir: Path) -> bool:
    """Iterations, metrics and checkpoints; whether it was asked to stop."""
    config = this.config
    saved = time.monotonic()
    say(
        f"{run_dir}: {config.torch_device()}, {config.num_envs} environments, "
        f"{sum(p.numel() for p in this.policy.parameters()):,} weights"
        + ("; compiling first, for a minute or two if it is new" if config.compile else "")
    )
    with (
        MetricsLogger(run_dir) as logger,
        stop_requests() as stop,
        Progress(
            config.total_steps,
            console=console,
            initial_step=this.step,
        ) as progress,
    ):
        logger.truncate_after(this.step)
        is_config_due = bool(config.resume)
        while this.step < config.total_steps and not stop:
            try:
                metrics = this.iterate()
            except NonFiniteLossError as error:
                kept = checkpoint.latest(run_dir)
                where = f"the last checkpoint is {kept}" if kept else "there is no checkpoint yet"
                raise NonFiniteLossError(f"at step {this.step}: {error}; {where}") from error
            if is_config_due:  # Only now is it known that what the run was given fits it.
                save_config(config, run_dir / "config.yaml")
                is_config_due = False
            logger.log(metrics, step=this.step)
            progress.update(this.step, metrics)
            if time.monotonic() - saved >= config.checkpoint_seconds:
                this.save(run_dir)
                saved = time.monotonic()
        last = this.save(run_dir)
    verb = "stopped at" if this.step < config.total_steps else "finished after"
    say(f"{verb} {this.step:,} steps; saved {last}")
    if this.profile is not None:
        say(this.profile.report())
    if this.step < config.total_steps:
        say(f"go on with: python -m mtxl_rl.train resume={run_dir}")
    return bool(stop)


def _new_run_dir(config: TrainConfig) -> Path:
    """A folder that no other run has, made at once."""
    now = Path("runs") / config.env.name / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder, attempt = now, 1
    while True:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            attempt += 1
            folder = now.with_name(f"{now.name}_{attempt}")
        else:
            return folder


def _detail(error: Exception) -> str:
    """What torch says of weights that do not fit stands below its first line."""
    lines = [line.strip() for line in str(error).splitlines()]
    return lines[1] if len(lines) > 1 else lines[0]


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Arrays as tensors, for the checkpoint."""
    return {
        key: torch.as_tensor(value) if hasattr(value, "dtype") else value
        for key, value in state.items()
    }


def _arrays(state: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value.numpy() if isinstance(value, torch.Tensor) else value
        for key, value in state.items()
    }


def usage() -> str:
    """What `--help` prints."""
    groups = "\n".join(f"  {group + '=':<8}{', '.join(choices(group))}" for group in GROUPS)
    return f"""\
python -m mtxl_rl.train env=NAME [option=value ...]     train an agent
python -m mtxl_rl.train resume=RUN_DIR [option=value ...]     go on with a run
python -m mtxl_rl.train env=NAME --cfg job     show every option and its value
python -m mtxl_rl.train env=NAME -m seed=0,1,2 'run_dir=runs/${{seed}}'     one run after another

{groups}

Any value that --cfg job shows can be given, as in num_envs=64 or torso.window_length=32.
"""


@hydra.main(version_base="1.3", config_path="pkg://mtxl_rl.configs", config_name="train")
def _hydra_main(composed: DictConfig) -> None:
    """For `--multirun`, `--cfg job`, `--help` and the rest of Hydra's flags."""
    with one_sentence_errors():
        _, was_stopped = _run(to_config(composed))
    if was_stopped and HydraConfig.get().mode == RunMode.MULTIRUN:
        say("the sweep ends here")
        raise SystemExit  # With 0, as a run alone; Hydra would start the next one.


def _resumed(source: str, changes: Sequence[str]) -> TrainConfig:
    """The configuration of a run that goes on from `source`."""
    if not source:
        raise ValueError(
            "resume= is empty; give the folder of a run, or a checkpoint in it, or leave it out to "
            "train a new run"
        )
    fixed = [part for part in changes if part.startswith(("torso.", "seed=", *_NAMED))]
    if fixed:
        raise ValueError(
            f"{fixed[0]} cannot change in a run that goes on, whose task, weights, memories and "
            "random numbers are those of its start; leave it out, or train a new run"
        )
    folder = run_folder(Path(source))
    config = load_config(folder, changes)
    config.resume = source
    if not any(part.startswith("run_dir=") for part in changes):
        config.run_dir = str(folder)
    return config


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: `name=value` overrides, or Hydra's flags."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with one_sentence_errors():
        bad = [part for part in given if "=" not in part and not part.startswith(("-", "~"))]
        flags = [part for part in given if part.startswith("-")]
        if {"-h", "--help"} & set(flags):
            sys.stdout.write(usage())
            return
        if bad and not flags:
            raise ValueError(f"{bad[0]!r} is no option; options are name=value, as in env=TMaze")
        resume = [part.split("=", 1)[1] for part in given if part.startswith("resume=")]
        if resume:
            run(_resumed(resume[-1], [part for part in given if not part.startswith("resume=")]))
        elif flags:
            register_schemas()
            # argparse wants the overrides together.
            overrides = [part for part in given if "=" in part and not part.startswith("-")]
            if overrides:
                check_overrides(overrides)
            rest = [part for part in given if part not in overrides]
            sys.argv = [sys.argv[0], *device_overrides(given), *overrides, *rest]
            _hydra_main()
        else:
            config = compose_config([*device_overrides(given), *given])
            for option, beside in unread_options(config, given):
                say(f"{option} has no effect with {beside}")
            run(config)


if __name__ == "__main__":
    main()
