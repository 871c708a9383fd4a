"""A training run's options, and their checks."""

from dataclasses import dataclass, field
from typing import Any

import torch

from mtxl_rl.agents.policy import PolicyConfig
from mtxl_rl.agents.ppo_config import PPOConfig
from mtxl_rl.agents.privileged import AuxiliaryConfig, CriticConfig
from mtxl_rl.agents.teacher import TeacherConfig
from mtxl_rl.envs.names import check_choice
from mtxl_rl.envs.registry import with_teacher
from mtxl_rl.runtime.devices import find_device
from mtxl_rl.torso import TorsoConfig
from mtxl_rl.torso.torso_config import check_at_least
from mtxl_rl.tracking.loggers import check_logger_names


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """A training run."""

    env: Any = None
    """The environment's own dataclass: see mtxl_rl/envs."""
    torso: TorsoConfig = field(default_factory=TorsoConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)
    auxiliary: AuxiliaryConfig = field(default_factory=AuxiliaryConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    model: str = "small"
    """Size preset: tiny, small, base or large."""
    seed: int = 0
    """Seed of weights, actions, minibatches and environments."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: cuda if there is a GPU, else cpu."""
    num_processes: int = 0
    """Processes that act and learn together, each with an equal share of num_envs; 0: as many as
    are fastest on this machine. torchrun starts them on several machines."""
    launcher: str = "torch"
    """The launcher of the processes of num_processes=: torch (its elastic launcher) or ray (Ray
    Train, which continues without a process that is lost; needs mtxl_rl[ray])."""
    num_threads: int = 1
    """CPU threads of torch's operations, in each process."""
    num_envs: int = 32
    """Number of environments, B."""
    total_steps: int = 1_000_000
    """Environment steps of the run, summed over all environments. Rounded up to whole iterations of
    num_envs x ppo.rollout_length."""
    stagger_steps: int = -1
    """Random steps before the first rollout, which spread the environments over this many steps of
    their episodes. Without them, episodes of equal length stay in phase: every rollout holds one
    part of an episode, or one alignment of episodes with segments, and the policy unlearns the
    others. The steps do not count in total_steps. -1: the task's own episode length if it is fixed
    (Memory Maze, T-maze), else 0."""
    run_dir: str = ""
    """Folder for the run's files. Empty: runs/<env>/<date_time>, or the resumed run's folder."""
    resume: str = ""
    """A run's folder, or a checkpoint in it, to continue. You can change any option except the
    task, torso.* and seed, if the weights and environments still fit."""
    initial_weights: str = ""
    """An agent whose weights a new run starts from: a run's folder, a checkpoint, a
    policy.safetensors, or hf://USER/NAME. Its torso must be the same. Other weights that it lacks
    or has in another shape, as for other observations, start at random, and are printed."""
    checkpoint_seconds: float = 60.0
    """Seconds between checkpoints, which are saved at an iteration's end; 0: every iteration."""
    keep_checkpoints: int = 3
    """Number of latest checkpoints to keep, in addition to the best one."""
    eval_every: int = 0
    """Environment steps between evaluations, which play new episodes in environments of their own,
    without a curriculum; the last policy is evaluated too. The best checkpoint is then the one with
    the highest evaluated return. 0: no evaluation."""
    eval_episodes: int = 32
    """Episodes of each evaluation."""
    eval_video: bool = True
    """Draw a video and the memory timeline of each evaluation, in RUN_DIR/evaluations and for the
    loggers, if matplotlib and imageio are installed."""
    logger: list[str] = field(default_factory=lambda: ["tensorboard"])
    """The loggers that show metrics: tensorboard, wandb, trackio, several of them, or none.
    RUN_DIR/metrics.jsonl is always written."""
    compile: bool | str = "auto"
    """Compile acting and the torso's layers, for torso.kind=transformer: true, false, or auto.
    Compiling takes one or two minutes the first time, and some seconds from torch's cache. On a CPU
    it needs a C++ compiler. auto measures the first iteration uncompiled, and compiles on a CPU if
    that saves time."""
    profile: bool = False
    """Profile the third iteration, and print at the end where its time went."""
    dry_run: bool = False
    """Print the bytes of buffer, snapshots and model, then stop before allocating them."""

    def __post_init__(self) -> None:
        """Check ranges and sizes against each other."""
        counts = ("num_envs", "total_steps", "keep_checkpoints", "num_threads", "eval_episodes")
        check_at_least(self, 1, *counts)
        check_at_least(self, 0, "seed", "checkpoint_seconds", "num_processes", "eval_every")
        check_choice("launcher", self.launcher, ("torch", "ray"))
        check_logger_names(self.logger)
        if self.stagger_steps < -1:
            raise ValueError(
                f"stagger_steps={self.stagger_steps} must be -1 (the task's episode length), 0 "
                "(none) or a number of steps"
            )
        self._check_sizes()
        self.env = with_teacher(self.env, self.teacher.policy)
        self._check_dependencies()

    def _check_sizes(self) -> None:
        span = self.span_length
        if self.ppo.rollout_length % span:
            raise ValueError(
                f"ppo.rollout_length={self.ppo.rollout_length} must be a multiple of "
                f"ppo.bptt_segments={self.ppo.bptt_segments} x torso.segment_length="
                f"{self.torso.segment_length} = {span}; try "
                f"ppo.rollout_length={max(1, round(self.ppo.rollout_length / span)) * span}"
            )
        spans = self.num_envs * (self.ppo.rollout_length // span)
        if spans % self.ppo.num_minibatches:
            legal = [n for n in range(1, min(spans, 64) + 1) if spans % n == 0]
            raise ValueError(
                f"ppo.num_minibatches={self.ppo.num_minibatches} must divide the "
                f"{spans} spans of a rollout (num_envs={self.num_envs} x "
                f"{self.ppo.rollout_length // span}); choose one of {legal}"
            )
        self.check_processes(max(self.num_processes, 1))

    def _check_dependencies(self) -> None:
        """Check options that need, or exclude, others."""
        if self.torso.sublayers.has_dropout:
            raise ValueError(
                "torso.sublayers has a dropout above 0, with which acting and learning compute "
                "different outputs; set it to 0 for an agent"
            )
        if (self.ppo.coef, self.ppo.final_coef) != (1.0, 1.0) and not self.teacher.policy:
            raise ValueError(
                f"ppo.coef={self.ppo.coef} and ppo.final_coef={self.ppo.final_coef} are for runs "
                "with a teacher; set teacher.policy=, or remove them"
            )
        if self.torso.odometry != bool(self.auxiliary.movement):
            raise ValueError(
                f"torso.odometry={self.torso.odometry} and auxiliary.movement="
                f"[{','.join(self.auxiliary.movement)}] need each other; set torso.odometry=true "
                "and name the two leaves that train it, as in "
                "auxiliary.movement=[last_vec,last_dir], or leave both out"
            )
        if self.compile != "auto" and not isinstance(self.compile, bool):
            raise ValueError(f"compile={self.compile} is unknown; choose auto, true or false")
        if self.compile is True and self.torso.kind != "transformer":
            raise ValueError(
                f"compile=true has no effect with torso.kind={self.torso.kind}; remove it, or "
                "set torso.kind=transformer"
            )

    def legal_processes(self) -> list[int]:
        """Numbers of processes among which environments and minibatches divide equally."""
        spans = self.ppo.rollout_length // self.span_length
        return [
            size
            for size in range(1, self.num_envs + 1)
            if self.num_envs % size == 0
            and self.num_envs // size * spans % self.ppo.num_minibatches == 0
        ]

    def check_processes(self, size: int) -> None:
        """Check that environments and minibatches divide equally among `size` processes.

        Raises:
            ValueError: they do not.
        """
        legal = self.legal_processes()
        if size not in legal:
            raise ValueError(
                f"num_processes={size} does not divide num_envs={self.num_envs} and its spans into "
                f"equal shares of ppo.num_minibatches={self.ppo.num_minibatches}; choose one of "
                f"{legal}, or another num_envs"
            )

    @property
    def span_length(self) -> int:
        """Steps of a span, L."""
        return self.ppo.bptt_segments * self.torso.segment_length

    @property
    def steps_per_iteration(self) -> int:
        """Environment steps of one rollout."""
        return self.num_envs * self.ppo.rollout_length

    @property
    def steps_to_stagger(self) -> int:
        """`stagger_steps`; for -1 the task's own `steps_per_episode`, or 0."""
        if self.stagger_steps >= 0:
            return self.stagger_steps
        return getattr(self.env, "steps_per_episode", 0)

    def torch_device(self) -> torch.device:
        """The torch device; see `find_device`."""
        return find_device(self.device)
