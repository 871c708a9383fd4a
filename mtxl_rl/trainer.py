"""A training run: its parts, its loop, its folder. `mtxl_rl.train` is the command line."""

import math
import shutil
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import record_function

from mtxl_rl.agents.collector import Actor, Collector, Episode
from mtxl_rl.agents.ppo import PPO
from mtxl_rl.agents.world import World, concatenate_rows, select_rows, tensors_hash
from mtxl_rl.build import build_policy, bytes_table, predicted_bytes, rollout_shape
from mtxl_rl.callbacks import CallbackList, Metrics
from mtxl_rl.config import TrainConfig, save_config, values
from mtxl_rl.envs.backends.custom_env import CustomEnv, is_factory
from mtxl_rl.envs.registry import make_vector_env, stream_seed
from mtxl_rl.envs.wrappers.episode_statistics import EpisodeStatistics
from mtxl_rl.evaluation.periodic import Evaluation, can_draw, draw, evaluate_while_training
from mtxl_rl.runtime.compile import check_gradients, compile_policy
from mtxl_rl.runtime.distributed import joined_world, local_device
from mtxl_rl.runtime.profiler import IterationProfiler
from mtxl_rl.runtime.ray_train import Session
from mtxl_rl.saved_agent import (
    POLICY_FILE,
    SavedAgent,
    describe_agent,
    run_folder,
    save_policy,
    saved_config,
)
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.cli import console, say, stop_requests
from mtxl_rl.tracking.files import run_lock
from mtxl_rl.tracking.loggers import check_loggers_installed
from mtxl_rl.tracking.metrics import METRICS_FILE, EpisodeWindow, MetricsLogger
from mtxl_rl.tracking.progress import Progress
from mtxl_rl.tracking.run_record import RECORD_FILE, outcome, run_record

PROFILED_ITERATION = 3
"""The iteration that profile=true profiles: the first ones compile and warm up."""


class Run:
    """The parts of a training run, and how they are saved and restored."""

    def __init__(
        self,
        config: TrainConfig,
        env: EpisodeStatistics,
        *,
        world: World | None = None,
        eval_env: CustomEnv | None = None,
    ) -> None:
        torch.manual_seed(config.seed)
        torch.set_num_threads(config.num_threads)
        # Otherwise float32 convolutions are TF32 on a GPU, and acting differs from learning.
        torch.backends.cudnn.allow_tf32 = False
        device = local_device(config.torch_device())
        self.config = config
        self.env = env
        self.eval_env = eval_env
        self.world = world or World()
        self.policy = build_policy(config, env).to(device)
        if config.compile:
            compile_policy(self.policy)
        self.agent = PPO(self.policy, config.ppo, world=self.world)
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.actor = Actor(env, self.policy, generator=self.generator, world=self.world)
        shape = rollout_shape(config, self.actor.shapes, self.policy, num_envs=env.num_envs)
        self.collector = Collector(self.actor, shape=shape)
        self.episodes = EpisodeWindow(size=100)
        self.ended_episodes: list[Episode] = []
        """The episodes that ended in the last iteration."""
        self.evaluated_return: float | None = None
        """The mean return of the evaluation after the last iteration, if there was one."""
        self.profiler = IterationProfiler(self.collector, self.agent)
        stored, predicted = self.collector.rollout.nbytes_by_part(), shape.bytes_by_part()
        assert stored == predicted, (stored, predicted)
        self.step = 0
        self.num_iterations = 0

    def iterate(self) -> dict[str, float]:
        """Collect a rollout and learn from it; return the metrics."""
        self.num_iterations += 1
        self.evaluated_return = None
        if self.config.profile and self.num_iterations == PROFILED_ITERATION:
            with self.profiler.profile(num_steps=self.config.steps_per_iteration):
                return self._iterate()
        return self._iterate()

    def _iterate(self) -> dict[str, float]:
        begin = time.perf_counter()
        with record_function("acting"):
            rollout, episodes = self.collector.collect()
        collected = time.perf_counter()
        if self.config.compile and self.num_iterations == 1:
            check_gradients(self.agent, rollout)
        with record_function("learning"):
            metrics = self.agent.update(rollout, progress=self.step / self.config.total_steps)
        self.step += self.config.steps_per_iteration
        self._count(episodes)
        speed = self._speed(begin, collected)
        waits = self.world.wait_seconds()
        return (
            self.episodes.means()
            | metrics
            | speed
            | {
                "world/size": self.world.size,
                "world/wait_seconds_mean": statistics.fmean(waits),
                "world/wait_seconds_max": max(waits),
            }
        )

    def _speed(self, begin: float, collected: float) -> dict[str, float]:
        """Seconds of each part of an iteration, and steps per second."""
        now, steps = time.perf_counter(), self.config.steps_per_iteration
        env_seconds, self.actor.env_seconds = self.actor.env_seconds, 0.0
        act_seconds, learn_seconds = collected - begin - env_seconds, now - collected
        return {
            "time/env_seconds": env_seconds,
            "time/act_seconds": act_seconds,
            "time/learn_seconds": learn_seconds,
            "charts/SPS": steps / (now - begin),
        }

    def _count(self, episodes: Sequence[Episode]) -> None:
        """Count the episodes that ended in all processes, in the order of their environments."""
        everywhere = [episode for part in self.world.gather(episodes) for episode in part]
        self.ended_episodes = sorted(everywhere, key=lambda episode: episode.env)
        for episode in self.ended_episodes:
            self.episodes.add(
                episode_return=episode.episode_return,
                episode_length=episode.length,
                episode_success=episode.success,
                is_practice=episode.is_practice,
            )

    def save(self, run_dir: Path) -> Path | None:
        """Write a checkpoint of everything that the next iteration depends on, on rank 0.

        Raises:
            RuntimeError: the processes' parameters differ.
        """
        self.world.check_equal(
            {"the parameters' hash": tensors_hash(self.policy.state_dict())},
            remedy="the processes' policies differ, which is a bug; please report it",
        )
        rows = {"collector": self.collector.state_dict(), "env": None}
        if self.env.supports_state:
            rows["env"] = _plain(self.env.get_state())
        rows = concatenate_rows(self.world.gather(rows))
        if self.world.rank > 0:
            return None
        state: checkpoint.TrainingState = {
            "step": self.step,
            "agent": self.agent.state_dict(),
            "generator": self.generator.get_state(),
            "episodes": self.episodes.state_dict(),
            "collector": rows["collector"],
            "env": rows["env"],
            "description": self.description(),
        }
        keep_last = self.config.keep_checkpoints
        return checkpoint.save(run_dir, state, score=self._score(), keep_last=keep_last)

    def _score(self) -> float | None:
        """What the best checkpoint has the highest of; None: this one cannot be the best."""
        if self.config.eval_every:
            return self.evaluated_return
        # A mean over few episodes can be lucky, and would then never be beaten.
        return (
            self.episodes.means().get("charts/episodic_return") if self.episodes.is_full else None
        )

    def is_evaluation_due(self) -> bool:
        """Whether `eval_every` steps are complete with the last iteration, or the run is."""
        every, before = self.config.eval_every, self.step - self.config.steps_per_iteration
        is_complete = self.step >= self.config.total_steps
        return bool(every) and (is_complete or self.step // every > before // every)

    def evaluate(self) -> Evaluation:
        """Evaluate the policy in environments of its own."""
        saved = SavedAgent(
            path=Path(),
            config=self.config,
            single_observation_space=self.env.single_observation_space,
            single_action_space=self.env.single_action_space,
            step=self.step,
            weights=self.policy.state_dict(),
        )
        episodes = self.config.eval_episodes
        evaluation = evaluate_while_training(saved, episodes=episodes, env=self.eval_env)
        self.evaluated_return = evaluation.metrics["eval/episodic_return"]
        return evaluation

    def action_probabilities(self) -> dict[str, NDArray[Any]]:
        """Probabilities of the last rollout's actions; of continuous actions, log-densities."""
        rollout = self.collector.rollout
        log_prob = rollout.log_prob[rollout.valid].float().cpu().numpy()
        if isinstance(self.env.single_action_space, gymnasium.spaces.Box):
            return {"histograms/action_log_density": log_prob}
        return {"histograms/action_probability": np.exp(log_prob)}

    def description(self) -> str:
        """What a file of the agent holds besides the weights."""
        return describe_agent(self.config, self.env, step=self.step)

    def start(self, *, seed: int | None) -> None:
        """Begin an episode in every environment; see `Actor.reset`."""
        steps = self.config.steps_to_stagger
        if steps:
            say(
                f"{steps:,} random steps in each of {self.config.num_envs} environments spread "
                "them over their episodes (stagger_steps=0: none)"
            )
        self.collector.reset(seed=seed, stagger_steps=steps)

    def restore(self, state: checkpoint.TrainingState) -> None:
        """Continue from a checkpoint; environments that cannot be saved start new episodes."""
        try:
            self.agent.load_state_dict(state["agent"])
            self.step = state["step"]
            self.generator.set_state(state["generator"].cpu())
            self.episodes.load_state_dict(state["episodes"])
            if state["env"] is None:
                say(
                    "These environments cannot be saved: they start new episodes, with empty "
                    "memories. Weights, optimiser and schedules continue."
                )
            else:
                rows = self.world.rows(self.env.num_envs)
                self.collector.load_state_dict(
                    select_rows(state["collector"], rows, num_rows=self.config.num_envs)
                )
                env_state = select_rows(state["env"], rows, num_rows=self.config.num_envs)
                self.env.reset()
                self.env.set_state(_arrays(env_state))
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint does not fit this configuration ({_detail(error)}); resume with "
                "the options it was trained with: num_envs, env.* and those of policy.* that add "
                "weights cannot change when resuming"
            ) from error
        if state["env"] is None:
            self.start(seed=stream_seed(self.config.seed, self.step))


def run(
    config: TrainConfig,
    *,
    env: CustomEnv | None = None,
    eval_env: CustomEnv | None = None,
    callbacks: Sequence[Any] = (),
) -> Path:
    """Train until `total_steps`, or until asked to stop; return the run's folder.

    Args:
        config: The options.
        env: An environment that Python code made, for the options' own.
        eval_env: An environment to evaluate in; None: the options' own, or those that `env` makes.
        callbacks: See `mtxl_rl.callbacks`.

    Raises:
        ValueError: a setting, the environment's spaces or a checkpoint is not legal.
        OSError: the disk is full or the folder cannot be written.
        NonFiniteLossError: learning diverged.

    An error while training has a note that names the step and the last checkpoint.
    """
    return run_until_signal(config, env=env, eval_env=eval_env, callbacks=callbacks)[0]


def run_until_signal(
    config: TrainConfig,
    *,
    env: CustomEnv | None = None,
    eval_env: CustomEnv | None = None,
    callbacks: Sequence[Any] = (),
    session: Session | None = None,
) -> tuple[Path, int]:
    """Train as `run` does; return the folder and the number of the signal that stopped it, or 0.

    `session` is the connection to Ray Train, in one of its workers.
    """
    device, calls = local_device(config.torch_device()), CallbackList(callbacks)
    eval_env = _evaluation_object(config, env, eval_env)
    check_loggers_installed(config.logger)
    if config.eval_every and config.eval_video and not can_draw():
        say("evaluations are not drawn: pip install 'mtxl_rl[video]' (eval_video=false: no videos)")
    if config.dry_run:
        with closing(make_vector_env(config.env, num_envs=1, seed=0)) as vector:
            console.print(bytes_table(predicted_bytes(config, vector)), highlight=False)
        return Path(), 0
    group = None if session is None else session.group
    with joined_world(device, options=values(config), group=group) as world:
        if config.num_processes not in (0, world.size) and session is None:
            say(f"num_processes={config.num_processes} has no effect: {world.size} were started")
        config.check_processes(world.size)
        with closing(_make_envs(config, env, world)) as vector:
            run_dir = _shared_run_dir(config, world)
            with run_lock(run_dir) if world.rank == 0 else nullcontext():
                run = _begin(config, vector, run_dir, world, eval_env)
                with (
                    run_record(
                        run_dir, step=run.step, rank=world.rank, world_size=world.size
                    ) as record,
                    _noted_errors(run, run_dir),
                ):
                    signal_number = _loop(run, run_dir, calls, session)
                    result = calls.stop_reason or outcome(signal_number)
                    record |= {"last_step": run.step, "outcome": result}
                if world.rank == 0:
                    if not (run_dir / "config.yaml").exists():  # Resumed with no steps left.
                        save_config(config, run_dir / "config.yaml")
                    path = run_dir / POLICY_FILE
                    save_policy(run.policy, path, description=run.description())
        return run_dir, signal_number


def _evaluation_object(
    config: TrainConfig, env: CustomEnv | None, eval_env: CustomEnv | None
) -> CustomEnv | None:
    """The environment to evaluate in, if Python code made it."""
    if eval_env is not None and not config.eval_every:
        raise ValueError("eval_env= has no effect without eval_every=STEPS; add it, or remove it")
    if eval_env is None and config.eval_every and env is not None and not is_factory(env):
        raise ValueError(
            f"eval_every={config.eval_every} needs environments of its own, and {env} is trained "
            "in; pass eval_env=, or a function that makes an environment, as in lambda: MyEnv()"
        )
    return env if eval_env is None else eval_env


def _make_envs(config: TrainConfig, custom: CustomEnv | None, world: World) -> EpisodeStatistics:
    """This process's share of the environments."""
    if custom is not None and world.size > 1 and not is_factory(custom):
        raise ValueError(
            f"{custom} is one object, and each of the {world.size} processes needs environments of "
            "its own; pass a function that makes an environment, as in lambda: MyEnv()"
        )
    num_envs = config.num_envs // world.size
    return make_vector_env(
        config.env,
        num_envs=num_envs,
        seed=stream_seed(config.seed, 0),
        first_env=world.rows(num_envs).start,
        custom=custom,
    )


def _shared_run_dir(config: TrainConfig, world: World) -> Path:
    """The run's folder, which rank 0 chooses where the options do not."""
    name = ""
    if world.rank == 0:
        name = config.run_dir or str(new_run_dir(config))
    return Path(world.gather(name)[0])


def _begin(
    config: TrainConfig,
    env: EpisodeStatistics,
    run_dir: Path,
    world: World,
    eval_env: CustomEnv | None,
) -> Run:
    """A new run, whose config is saved, or a run restored from its checkpoint."""
    state = check_start(config, run_dir, world)
    run = Run(config, env, world=world, eval_env=eval_env)
    if state is not None:
        run.restore(state)
    else:
        run.start(seed=None)
        if world.rank == 0:
            save_config(config, run_dir / "config.yaml")
    return run


def check_start(
    config: TrainConfig, run_dir: Path, world: World
) -> checkpoint.TrainingState | None:
    """Check that a run can begin or continue in a folder; return the checkpoint that it continues.

    Raises:
        ValueError: the folder holds another run, or later steps of this one.
    """
    if config.resume:
        return _load(config, run_dir, world)
    if world.rank == 0 and (run_dir / "config.yaml").exists():
        remedy = f"continue with resume={run_dir}"
        if checkpoint.latest(run_dir) is None:
            remedy = "it was stopped before its first checkpoint: delete it"
        raise ValueError(
            f"run_dir={run_dir} already holds a run; {remedy}, or choose another run_dir"
        )
    return None


def _load(config: TrainConfig, run_dir: Path, world: World) -> checkpoint.TrainingState:
    """The checkpoint to continue; a run continued in another folder copies its metrics there."""
    source = Path(config.resume)
    state = checkpoint.load(source)
    old = run_folder(source)
    changed = _changed(config, saved_config(source))
    if state["step"] >= config.total_steps:
        done = f"{source} has {state['step']:,} of total_steps={config.total_steps:,}"
        if changed:
            raise ValueError(
                f"{done}: nothing is left to train, and {', '.join(changed)} would have no effect; "
                "give a larger total_steps="
            )
        say(f"{done}: nothing is left to train; give a larger total_steps= to continue")
    if world.rank > 0:
        return state
    if old is None or run_dir.resolve() != old.resolve():
        if (run_dir / "config.yaml").exists():
            raise ValueError(f"run_dir={run_dir} already holds a run; choose another run_dir")
        if old is not None:
            _copy_history(old, run_dir)
        return state
    newest = checkpoint.latest(run_dir)
    if newest is not None and checkpoint.step_of(newest) > state["step"]:
        raise ValueError(
            f"resume={source} is at step {state['step']:,}, and this run already has "
            f"{newest}; give run_dir=NEW_FOLDER to continue from there in another folder"
        )
    return state


def _copy_history(old: Path, run_dir: Path) -> None:
    for name in (METRICS_FILE, RECORD_FILE):
        if (old / name).exists():
            shutil.copy(old / name, run_dir)


def _changed(config: TrainConfig, saved: TrainConfig) -> list[str]:
    """The options that differ from those of the resumed run."""
    ignored = ("resume", "run_dir", "total_steps")
    before, after = values(saved), values(config)
    return [key for key in after if key not in ignored and after[key] != before.get(key)]


def _loop(run: Run, run_dir: Path, callbacks: CallbackList, session: Session | None) -> int:
    """Iterate, log and save; return the number of the signal that stopped the loop, or 0."""
    config, world = run.config, run.world
    is_main = world.rank == 0
    say(_description(run, run_dir))
    with (
        MetricsLogger(run_dir, loggers=config.logger, options=values(config))
        if is_main
        else nullcontext() as logger,
        stop_requests(announce=is_main, requests=session.stop if session else None) as stop,
        Progress(
            config.total_steps,
            console=console,
            initial_step=run.step,
        )
        if is_main
        else nullcontext() as progress,
    ):
        if logger is not None:
            logger.truncate_after(run.step)
        # A run that is killed in its first minutes loses one iteration, not all.
        saved, is_config_due = -math.inf, bool(config.resume)
        is_stopping, metrics = False, dict[str, float | int]()
        while run.step < config.total_steps and not is_stopping:
            metrics = run.iterate()
            if is_config_due and is_main:  # Only now is it certain that the options fit the run.
                save_config(config, run_dir / "config.yaml")
                is_config_due = False
            if logger is not None and progress is not None:
                if run.is_evaluation_due():
                    metrics |= _evaluate(run, run_dir, logger)
                logger.log(metrics, step=run.step)
                progress.update(run.step, metrics)
                callbacks.on_iteration(metrics, episodes=run.ended_episodes, step=run.step)
            is_last = run.step >= config.total_steps
            is_due = not is_last and (
                time.monotonic() - saved >= config.checkpoint_seconds
                or run.evaluated_return is not None
            )
            # Every process takes the same decisions: rank 0's clock and callbacks, and any signal.
            asks_to_stop = bool(stop) or bool(callbacks.stop_reason)
            is_due, is_stopping = world.any(
                is_due and is_main, asks_to_stop, device=run.agent.device
            )
            if is_due and not is_stopping:
                _save(run, run_dir, metrics, callbacks, session)
                saved = time.monotonic()
        last = _save(run, run_dir, metrics, callbacks, session)
    _report_end(run, run_dir, last)
    callbacks.stop_reason = world.gather(callbacks.stop_reason)[0]
    if not is_stopping or callbacks.stop_reason:
        return 0
    # Without a signal of its own, this process stops because another one received a signal.
    return (stop or [signal.SIGTERM])[0]


def _evaluate(run: Run, run_dir: Path, logger: MetricsLogger) -> dict[str, float]:
    """Evaluate the policy, and log its pictures and histograms; return its metrics."""
    evaluation = run.evaluate()
    pictures = dict[str, Path]()
    if run.config.eval_video and can_draw():
        pictures = draw(evaluation.recorder, run_dir / "evaluations", step=run.step)
    histograms = run.action_probabilities() | evaluation.histograms
    logger.log_media(histograms=histograms, pictures=pictures, step=run.step)
    return evaluation.metrics


def _save(
    run: Run,
    run_dir: Path,
    metrics: Metrics,
    callbacks: CallbackList,
    session: Session | None,
) -> Path | None:
    """Save a checkpoint, and pass it to the callbacks and to Ray; its path on rank 0."""
    path = run.save(run_dir)
    if path is not None:
        callbacks.on_checkpoint(path, metrics, step=run.step)
    if session is not None:
        session.report(metrics, path)
    return path


def _report_end(run: Run, run_dir: Path, last: Path | None) -> None:
    is_finished = run.step >= run.config.total_steps
    say(f"{'finished after' if is_finished else 'stopped at'} {run.step:,} steps; saved {last}")
    if run.profiler.report:
        say(run.profiler.report)
    if not is_finished:
        say(f"continue with: python -m mtxl_rl.train resume={run_dir}")


@contextmanager
def _noted_errors(run: Run, run_dir: Path) -> Iterator[None]:
    """Add the step, the process and the last checkpoint to an error."""
    try:
        yield
    except Exception as error:
        world, newest = run.world, checkpoint.latest(run_dir)
        process = f" in process {world.rank} of {world.size}" if world.size > 1 else ""
        where = f"the last checkpoint is {newest}" if newest else "there is no checkpoint yet"
        error.add_note(f"at step {run.step}{process}; {where}")
        raise


def _description(run: Run, run_dir: Path) -> str:
    config, world = run.config, run.world
    processes = ""
    if world.size > 1:
        processes = f" in {world.size} processes of {run.env.num_envs}"
    return (
        f"{run_dir}: {config.torch_device()}, {config.num_envs} environments{processes}, "
        f"{sum(p.numel() for p in run.policy.parameters()):,} parameters"
        + ("; compiling first, for a minute or two if it is new" if config.compile else "")
    )


def new_run_dir(config: TrainConfig) -> Path:
    """Create a folder that no other run has."""
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
    """The second line of torch's message, which names the weights that do not fit."""
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
