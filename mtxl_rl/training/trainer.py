"""The course of a training run: its folder, its loop, its end; `train` is the command line."""

import math
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

from mtxl_rl.agents.world import World
from mtxl_rl.build import bytes_table, predicted_bytes
from mtxl_rl.compose import values
from mtxl_rl.config import TrainConfig
from mtxl_rl.config_files import save_config
from mtxl_rl.envs.backends.custom_env import CustomEnv, is_factory
from mtxl_rl.envs.registry import make_vector_env, stream_seed
from mtxl_rl.envs.wrappers.episode_statistics import EpisodeStatistics
from mtxl_rl.evaluation.periodic import can_draw, draw
from mtxl_rl.runtime.devices import local_device
from mtxl_rl.runtime.distributed import joined_world
from mtxl_rl.runtime.ray_train import Session
from mtxl_rl.saved_agent import (
    POLICY_FILE,
    run_folder,
    save_policy,
    saved_config,
)
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.cli import console, print_line, stop_requests
from mtxl_rl.tracking.files import run_lock
from mtxl_rl.tracking.loggers import check_loggers_installed
from mtxl_rl.tracking.metrics import METRICS_FILE, MetricsLogger
from mtxl_rl.tracking.progress import Progress
from mtxl_rl.tracking.run_record import RECORD_FILE, outcome, run_record
from mtxl_rl.training.callbacks import CallbackList, Metrics
from mtxl_rl.training.run import Run


def run_until_signal(
    config: TrainConfig,
    *,
    env: CustomEnv | None = None,
    eval_env: CustomEnv | None = None,
    callbacks: Sequence[Any] = (),
    session: Session | None = None,
) -> tuple[Path, int]:
    """Train until `total_steps`, or until asked to stop.

    Args:
        config: The options.
        env: An environment that Python code made, for the options' own.
        eval_env: An environment to evaluate in; None: the options' own, or those that `env` makes.
        callbacks: See `mtxl_rl.training.callbacks`.
        session: The connection to Ray Train, in one of its workers.

    Returns:
        The run's folder, and the number of the signal that stopped the run, or 0.

    Raises:
        ValueError: a setting, the environment's spaces or a checkpoint is not legal.
        OSError: the disk is full or the folder cannot be written.
        NonFiniteLossError: learning diverged.

    An error while training has a note that names the step and the last checkpoint.
    """
    device, calls = local_device(config.torch_device()), CallbackList(callbacks)
    eval_env = _evaluation_object(config, env, eval_env)
    check_loggers_installed(config.logger)
    if config.eval_every and config.eval_video and not can_draw():
        print_line(
            "evaluations are not drawn: pip install 'mtxl_rl[video]' (eval_video=false: no videos)"
        )
    if config.dry_run:
        _print_predicted_bytes(config)
        return Path(), 0
    group = None if session is None else session.group
    with joined_world(device, options=values(config), group=group) as world:
        if config.num_processes not in (0, world.size) and session is None:
            print_line(
                f"num_processes={config.num_processes} has no effect: {world.size} were started"
            )
        config.check_processes(world.size)
        with closing(_make_envs(config, env, world)) as vector:
            run_dir = _shared_run_dir(config, world)
            with run_lock(run_dir) if world.rank == 0 else nullcontext():
                run = _begin(config, vector, run_dir, world, eval_env)
                signal_number = _recorded_loop(run, run_dir, calls, session)
                if world.rank == 0:
                    _save_result(run, run_dir)
        return run_dir, signal_number


def _print_predicted_bytes(config: TrainConfig) -> None:
    with closing(make_vector_env(config.env, num_envs=1, seed=0)) as env:
        console.print(bytes_table(predicted_bytes(config, env)), highlight=False)


def _recorded_loop(
    run: Run, run_dir: Path, callbacks: CallbackList, session: Session | None
) -> int:
    """Run the loop with an entry in the run's record; return the loop's signal number."""
    world = run.world
    with (
        run_record(run_dir, step=run.step, rank=world.rank, world_size=world.size) as record,
        _noted_errors(run, run_dir),
    ):
        signal_number = _loop(run, run_dir, callbacks, session)
        result = callbacks.stop_reason or outcome(signal_number)
        record |= {"last_step": run.step, "outcome": result}
    return signal_number


def _save_result(run: Run, run_dir: Path) -> None:
    """Save the trained policy, and the options where the loop has not."""
    if not (run_dir / "config.yaml").exists():  # Resumed with no steps left.
        save_config(run.config, run_dir / "config.yaml")
    policy = run.trained_agent().build_policy(run.agent.device)
    save_policy(policy, run_dir / POLICY_FILE, description=run.description())


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
        if config.initial_weights:
            run.copy_initial_weights()
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
        print_line(f"{done}: nothing is left to train; give a larger total_steps= to continue")
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
    is_main = run.world.rank == 0
    print_line(_description(run, run_dir))
    with (
        _log_and_progress(run, run_dir) if is_main else nullcontext() as log,
        stop_requests(announce=is_main, requests=session.stop if session else None) as stop,
    ):
        # A run that is killed in its first minutes loses one iteration, not all.
        saved, is_config_due = -math.inf, bool(run.config.resume)
        is_stopping, metrics = False, dict[str, float | int]()
        while run.step < run.config.total_steps and not is_stopping:
            metrics = run.iterate()
            if is_config_due and is_main:  # Only now is it certain that the options fit the run.
                save_config(run.config, run_dir / "config.yaml")
                is_config_due = False
            if log is not None:
                metrics = _log(run, run_dir, metrics, *log)
                callbacks.on_iteration(metrics, episodes=run.ended_episodes, step=run.step)
            run.world.wait_for_first()  # Its evaluation or a callback may take hours.
            # All processes decide alike: by rank 0's clock and callbacks, and any signal.
            is_due, is_stopping = run.world.any(
                is_main and _is_checkpoint_due(run, seconds=time.monotonic() - saved),
                bool(stop) or bool(callbacks.stop_reason),
                device=run.agent.device,
            )
            if is_due and not is_stopping:
                _save(run, run_dir, metrics, callbacks, session)
                saved = time.monotonic()
        last = _save(run, run_dir, metrics, callbacks, session)
    _report_end(run, run_dir, last)
    callbacks.stop_reason = run.world.gather(callbacks.stop_reason)[0]
    if not is_stopping or callbacks.stop_reason:
        return 0
    # Without a signal of its own, this process stops because another one received a signal.
    return (stop or [signal.SIGTERM])[0]


@contextmanager
def _log_and_progress(run: Run, run_dir: Path) -> Iterator[tuple[MetricsLogger, Progress]]:
    """The log of a run, without the steps that it repeats, and the progress on the terminal."""
    config = run.config
    options = {**values(config), "world_size": run.world.size}
    with (
        MetricsLogger(run_dir, loggers=config.logger, options=options) as logger,
        Progress(config.total_steps, console=console, initial_step=run.step) as progress,
    ):
        logger.truncate_after(run.step)
        yield logger, progress


def _is_checkpoint_due(run: Run, *, seconds: float) -> bool:
    """Whether to save now, `seconds` after the last checkpoint; the loop's end always saves."""
    if run.step >= run.config.total_steps:
        return False
    return seconds >= run.config.checkpoint_seconds or run.evaluated_return is not None


def _log(
    run: Run,
    run_dir: Path,
    metrics: dict[str, float | int],
    logger: MetricsLogger,
    progress: Progress,
) -> dict[str, float | int]:
    """Evaluate if it is due, and log an iteration; return the metrics with the evaluation's."""
    if run.is_evaluation_due():
        metrics = metrics | _evaluate(run, run_dir, logger)
    logger.log(metrics, step=run.step)
    progress.update(run.step, metrics, is_typical=not run.is_compiling)
    return metrics


def _evaluate(run: Run, run_dir: Path, logger: MetricsLogger) -> dict[str, float]:
    """Evaluate the policy, and log its pictures and histograms; return its metrics."""
    evaluation = run.evaluate()
    pictures = dict[str, Path]()
    if run.config.eval_video and can_draw():
        pictures = draw(evaluation.recording, run_dir / "evaluations", step=run.step)
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
    run.world.wait_for_first()
    if session is not None:
        session.report(metrics, path)
    return path


def _report_end(run: Run, run_dir: Path, last: Path | None) -> None:
    is_finished = run.step >= run.config.total_steps
    print_line(
        f"{'finished after' if is_finished else 'stopped at'} {run.step:,} steps; saved {last}"
    )
    if run.profiler.report:
        print_line(run.profiler.report)
    if not is_finished:
        print_line(f"continue with: python -m mtxl_rl.train resume={run_dir}")


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
    everything, torso = (
        sum(p.numel() for p in module.parameters()) for module in (run.policy, run.policy.torso)
    )
    return (
        f"{run_dir}: {config.torch_device()}, {config.num_envs} environments{processes}, "
        f"{everything:,} parameters, {torso:,} of them in the torso"
        + ("; compiling first, for a minute or two if it is new" if config.compile is True else "")
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
