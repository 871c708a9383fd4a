"""The options of an evaluation, and how they are checked."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mtxl_rl.agents.episodes import MEMORIES
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.names import check_choice
from mtxl_rl.envs.registry import evaluation_env
from mtxl_rl.evaluation.timeline import PANELS, PLOT_SUFFIXES
from mtxl_rl.evaluation.video import VIDEO_SUFFIXES
from mtxl_rl.torso.torso_config import check_at_least


@dataclass(kw_only=True, slots=True)
class PolicyOverrides:
    """Options of the run's policy that an evaluation can change."""

    precision: str = ""
    """float32, bfloat16 or auto (by the device); empty: the run's."""


@dataclass(kw_only=True, slots=True)
class TorsoOverrides:
    """Sizes of the run's torso that an evaluation can change: no weight's shape depends on them."""

    window_length: int = 0
    """Short-term memory in steps, M; 0: the run's."""
    segment_length: int = 0
    """Steps between two writes of the long-term memory, S; 0: the run's."""


@dataclass(kw_only=True, slots=True)
class EvaluateConfig:
    """The options of `mtxl_rl.evaluate`."""

    checkpoint: str = ""
    """A run's folder, a checkpoint file (.pt), or a policy.safetensors."""
    which: str = "latest"
    """Which checkpoint of a run's folder: latest or best."""
    episodes: int = 100
    """Episodes for each setting of the long-term memory."""
    num_envs: int = 16
    """Number of environments."""
    seed: int = 0
    """Seed of environments and actions. No training run uses the same environment seeds."""
    memory: list[str] = field(default_factory=lambda: list(MEMORIES))
    """Settings of the long-term memory to compare: on, zero (ablated: zeroed before every step),
    noise (replaced by noise of the same scale before every step)."""
    greedy: bool = False
    """Take the most probable action instead of sampling one."""
    output: str = ""
    """JSON file for the episodes' returns, lengths and successes."""
    video: str = ""
    """Video of the first environment and the agent's memory: .mp4 or .gif."""
    timeline: str = ""
    """Plot of the agent's memory over time: .png or .svg."""
    timeline_panels: list[str] = field(default_factory=lambda: list(PANELS))
    """What the timeline shows, of observation, reward, action, memory, retrieved and attention."""
    probe: str = ""
    """Plot of how well the agent's output predicts the leaves of auxiliary.predict, by the steps
    since each target was last in view: .png or .svg. Memory Maze and GridMemoryMaze. With
    torso.odometry, also the errors of its pose, printed."""
    video_steps: int = 500
    """Maximum number of steps in the video and in the timeline."""
    compile: bool = False
    """Compile acting, as in training. It pays for long episodes."""
    device: str = ""
    """cpu, cuda, cuda:N or auto; empty: the run's."""
    num_threads: int = 0
    """CPU threads of torch; 0: the run's."""
    env: Any = None
    """The environment; None: the run's, without a curriculum."""
    policy: PolicyOverrides = field(default_factory=PolicyOverrides)
    torso: TorsoOverrides = field(default_factory=TorsoOverrides)

    def __post_init__(self) -> None:
        """Check names and ranges."""
        if not self.checkpoint:
            raise ValueError("checkpoint= is missing; give a run's folder")
        if self.which != "latest" and Path(self.checkpoint).is_file():
            raise ValueError(
                f"which={self.which} chooses in a run's folder, and {self.checkpoint} is one "
                "checkpoint; give one or the other"
            )
        check_at_least(self, 1, "episodes", "num_envs", "video_steps")
        check_at_least(self, 0, "seed", "num_threads")
        check_at_least(self.torso, 0, "window_length", "segment_length", prefix="torso.")
        for setting in self.memory or [""]:
            check_choice("memory", setting, MEMORIES)
        for panel in self.timeline_panels or [""]:
            check_choice("timeline_panels", panel, PANELS)
        if (self.video or self.timeline) and "on" not in self.memory:
            settings = ",".join(self.memory)
            raise ValueError(
                f"memory={settings} does not contain on, and video= and timeline= show an agent "
                f"with its memory; type memory=on,{settings}"
            )
        pictures = {"video": VIDEO_SUFFIXES, "timeline": PLOT_SUFFIXES, "probe": PLOT_SUFFIXES}
        for name, suffixes in pictures.items():
            path = getattr(self, name)
            if path and Path(path).suffix not in suffixes:
                raise ValueError(f"{name}={path} must end in {' or '.join(suffixes)}")

    def train_config(self, saved: TrainConfig) -> TrainConfig:
        """The run's configuration `saved` with this evaluation's changes."""
        torso, policy = self.torso, self.policy
        return replace(
            saved,
            env=evaluation_env(saved.env) if self.env is None else self.env,
            device=self.device or saved.device,
            num_threads=self.num_threads or saved.num_threads,
            compile=self.compile,
            policy=replace(saved.policy, precision=policy.precision or saved.policy.precision),
            torso=replace(
                saved.torso,
                window_length=torso.window_length or saved.torso.window_length,
                segment_length=torso.segment_length or saved.torso.segment_length,
            ),
        )
