"""A training run: its parts, one iteration, and how it is saved and restored."""

import json
import statistics
import time
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torch.profiler import record_function

from mtxl_rl.agents.actor import Actor, Episode
from mtxl_rl.agents.collector import Collector
from mtxl_rl.agents.policy import Policy
from mtxl_rl.agents.ppo import PPO
from mtxl_rl.agents.teacher import OWN_TEACHER, EnvTeacher, PolicyTeacher, Teacher
from mtxl_rl.agents.world import World, concatenate_rows, select_rows, tensors_hash
from mtxl_rl.build import build_policy, rollout_shape
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.backends.custom_env import CustomEnv
from mtxl_rl.envs.registry import stream_seed
from mtxl_rl.envs.wrappers.episode_statistics import EpisodeStatistics
from mtxl_rl.evaluation.periodic import Evaluation, evaluate_while_training
from mtxl_rl.runtime.allocator import keep_freed_memory
from mtxl_rl.runtime.compile import check_gradients, compile_policy, resolve_compile
from mtxl_rl.runtime.devices import local_device
from mtxl_rl.runtime.profiler import IterationProfiler
from mtxl_rl.saved_agent import SavedAgent, describe_agent, read_agent
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.cli import print_line
from mtxl_rl.tracking.metrics import EpisodeWindow

PROFILED_ITERATION = 3
"""The iteration that profile=true profiles: the first ones compile and warm up."""


class Run:
    """The parts of a training run, and how they are saved and restored."""

    step = 0
    num_iterations = 0
    """Iterations since the run was started or resumed."""
    evaluated_return: float | None = None
    """The mean return of the evaluation after the last iteration, if it was followed by one."""
    is_compiling = False
    """Whether the last iteration was the first compiled one, which includes compiling."""
    compute_seconds = 0.0
    """Seconds of acting and learning in the last iteration."""

    def __init__(
        self,
        config: TrainConfig,
        env: EpisodeStatistics,
        *,
        world: World | None = None,
        eval_env: CustomEnv | None = None,
    ) -> None:
        _set_up_torch(config)
        device = local_device(config.torch_device())
        self.config = config
        self.env = env
        self.eval_env = eval_env
        self.world = world or World()
        self.policy = build_policy(config, env, device)
        if config.compile is True:
            compile_policy(self.policy)
        self.agent = PPO(
            self.policy,
            config.ppo,
            auxiliary=config.auxiliary,
            teacher=config.teacher,
            world=self.world,
        )
        self.generator = torch.Generator(device).manual_seed(config.seed)
        self.actor = Actor(
            env,
            self.policy,
            generator=self.generator,
            world=self.world,
            teacher=make_teacher(config, env, self.policy) if config.teacher.policy else None,
            is_training=True,
        )
        shape = rollout_shape(config, self.actor.shapes, self.policy, num_envs=env.num_envs)
        self.collector = Collector(self.actor, shape=shape)
        self.episodes = EpisodeWindow()
        self.ended_episodes: list[Episode] = []
        """The episodes that ended in the last iteration."""
        self.profiler = IterationProfiler(self.collector, self.agent)

    def iterate(self) -> dict[str, float]:
        """Collect a rollout and learn from it; return the metrics."""
        self.num_iterations += 1
        self.evaluated_return = None
        if self.config.profile and self.num_iterations == PROFILED_ITERATION:
            with self.profiler.profile(num_steps=self.config.steps_per_iteration):
                return self._iterate()
        return self._iterate()

    def _iterate(self) -> dict[str, float]:
        self.is_compiling = self._begins_compiled()
        begin = time.perf_counter()
        teacher, total_steps = self.config.teacher, self.config.total_steps
        teacher_progress = teacher.progress(self.step, total_steps=total_steps)
        self.actor.lead(share=teacher.beta_at(teacher_progress))
        with record_function("acting"):
            rollout, episodes = self.collector.collect()
        collected = time.perf_counter()
        if self.is_compiling:
            check_gradients(self.agent, rollout)
        with record_function("learning"):
            metrics = self.agent.update(
                rollout, progress=self.step / total_steps, teacher_progress=teacher_progress
            )
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
            | {f"world/wait_seconds_rank_{rank}": wait for rank, wait in enumerate(waits)}
        )

    def _begins_compiled(self) -> bool:
        """Whether this iteration is the first compiled one; decides it for `compile=auto`."""
        if self.config.compile != "auto" or self.num_iterations != 2:
            return self.config.compile is True and self.num_iterations == 1
        steps_left = self.config.total_steps - self.step
        seconds_left = self.compute_seconds * steps_left / self.config.steps_per_iteration
        answer = resolve_compile(
            self.config.torso.kind, self.agent.device, seconds_left=seconds_left
        )
        # All processes compile, or none.
        compiles, reason = min(self.world.gather(answer), key=itemgetter(0))
        print_line(f"compile={str(compiles).lower()}: {reason}")
        if compiles:
            compile_policy(self.policy)
        return compiles

    def _speed(self, begin: float, collected: float) -> dict[str, float]:
        """Seconds of each part of an iteration, and steps per second."""
        now, steps = time.perf_counter(), self.config.steps_per_iteration
        env_seconds, self.actor.env_seconds = self.actor.env_seconds, 0.0
        act_seconds, learn_seconds = collected - begin - env_seconds, now - collected
        self.compute_seconds = act_seconds + learn_seconds
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
                is_led=episode.is_led,
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
        parts = self.world.gather_to_first(rows)
        if parts is None:
            return None
        rows = concatenate_rows(parts)
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
        """The score by which checkpoints are compared; None: this one cannot be the best."""
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
        """Evaluate the agent in environments of its own."""
        evaluation = evaluate_while_training(
            self.trained_agent(), episodes=self.config.eval_episodes, env=self.eval_env
        )
        self.evaluated_return = evaluation.metrics["eval/episodic_return"]
        return evaluation

    def trained_agent(self) -> SavedAgent:
        """The agent as a file of it would have it."""
        return SavedAgent(
            path=Path(),
            config=self.config,
            single_observation_space=self.env.single_observation_space,
            single_action_space=self.env.single_action_space,
            step=self.step,
            weights=self.agent.trained_weights(),
        )

    def action_probabilities(self) -> dict[str, NDArray[Any]]:
        """Probabilities of the last rollout's actions; of continuous actions, log-densities."""
        rollout = self.collector.rollout
        log_prob = rollout.log_prob[rollout.valid].float().cpu().numpy()
        if isinstance(self.env.single_action_space, gymnasium.spaces.Box):
            return {"histograms/action_log_density": log_prob}
        return {"histograms/action_probability": np.exp(log_prob)}

    def description(self) -> str:
        """The description in a file of the agent."""
        return describe_agent(self.config, self.env, step=self.step)

    def copy_initial_weights(self) -> None:
        """Copy the weights of the agent that `initial_weights` names.

        Raises:
            FileNotFoundError: no file or folder has that name.
            ValueError: the file is not an agent, or its torso differs.
        """
        name = self.config.initial_weights
        others = read_agent(Path(name)).copy_weights(self.policy)
        modules = dict.fromkeys(other.rpartition(".")[0] for other in others)
        exception = f" but those of {', '.join(modules)}" if modules else ""
        print_line(f"initial_weights={name} gives all weights{exception}")

    def start(self, *, seed: int | None) -> None:
        """Begin an episode in every environment; see `Actor.reset`."""
        steps = self.config.steps_to_stagger
        if steps:
            print_line(
                f"{steps:,} random steps in each of {self.config.num_envs} environments spread "
                "them over their episodes (stagger_steps=0: none)"
            )
        self.collector.reset(seed=seed, stagger_steps=steps)

    def restore(self, state: checkpoint.TrainingState) -> None:
        """Continue from a checkpoint, with new episodes where it holds none to continue."""
        try:
            reason = _reason_for_new_episodes(state, self.config)
            self.agent.load_state_dict(state["agent"])
            self.step = state["step"]
            self.generator.set_state(state["generator"].cpu())
            self.episodes.load_state_dict(state["episodes"])
            if not reason:
                rows = self.world.rows(self.env.num_envs)
                self.collector.load_state_dict(
                    select_rows(state["collector"], rows, num_rows=self.config.num_envs)
                )
                env_state = select_rows(state["env"], rows, num_rows=self.config.num_envs)
                self.env.reset()
                self.env.set_state(_arrays(env_state))
        except (LookupError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"the checkpoint does not fit this configuration ({_detail(error)}); resume with "
                "the options it was trained with: num_envs, env.* and those of policy.* that add "
                "weights cannot change when resuming"
            ) from error
        if reason:
            print_line(
                f"{reason}: new episodes start in all environments, with empty memories. Weights, "
                "optimiser and schedules continue."
            )
            self.start(seed=stream_seed(self.config.seed, self.step))


def _reason_for_new_episodes(state: checkpoint.TrainingState, config: TrainConfig) -> str:
    """Why a resumed run cannot continue the checkpoint's episodes; empty if it can."""
    if state["env"] is None:
        return "These environments cannot be saved"
    now, saved = config.teacher.policy, json.loads(state["description"])["config"]["teacher"]
    if now and now != saved["policy"]:
        return f"teacher.policy={now} has not seen the episodes of the checkpoint"
    return ""


def _set_up_torch(config: TrainConfig) -> None:
    """Set torch's seed, threads, memory and precision, which belong to the process."""
    keep_freed_memory()
    torch.manual_seed(config.seed)
    torch.set_num_threads(config.num_threads)
    # Otherwise float32 convolutions are TF32 on a GPU, and acting differs from learning.
    torch.backends.cudnn.allow_tf32 = False


def make_teacher(config: TrainConfig, env: EpisodeStatistics, policy: Policy) -> Teacher:
    """The teacher that `teacher.policy` names: the environment's own, or a trained agent.

    Raises:
        FileNotFoundError: neither an agent nor a teacher has that name.
        ValueError: the agent is not legal, or its actions differ from the task's.
    """
    name, env_teachers = config.teacher.policy, (*getattr(config.env, "TEACHERS", ()), OWN_TEACHER)
    device = next(policy.parameters()).device
    if name in env_teachers:
        return EnvTeacher(policy.action_head, device=device)
    try:
        saved = read_agent(Path(name))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"teacher.policy={name} is not an agent's folder or file, nor one of "
            f"{', '.join(env_teachers)} (env: the environment reports teacher_logits)"
        ) from error
    if saved.single_action_space != env.single_action_space:
        raise ValueError(
            f"teacher.policy={name} acts in {saved.single_action_space} and this task in "
            f"{env.single_action_space}; give an agent that was trained with the same actions"
        )
    return PolicyTeacher(saved.build_policy(device))


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
