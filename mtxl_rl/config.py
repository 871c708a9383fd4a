"""The training run's configuration: composed by Hydra at the edge, a dataclass everywhere else."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_origin

import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtxl_rl.agents.policy import PolicyConfig
from mtxl_rl.agents.ppo import PPOConfig
from mtxl_rl.envs.names import nearest_names
from mtxl_rl.envs.registry import ENVS
from mtxl_rl.torso import TorsoConfig
from mtxl_rl.torso.torso_config import check_at_least

GROUPS = ("env", "torso", "model")
Config = TypeVar("Config")


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """A training run."""

    env: Any = None
    """The environment's own dataclass: see mtxl_rl/envs."""
    torso: TorsoConfig = field(default_factory=TorsoConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    model: str = "small"
    """Name of the size preset in use: tiny, small, base or large."""
    seed: int = 0
    """Seeds weights, actions, minibatches and environments."""
    device: str = "auto"
    """cpu, cuda, cuda:N, or auto: cuda where there is one."""
    num_processes: int = 0
    """Processes that act and learn together, each with an equal share of num_envs; 0: as many as
    are fastest on this machine. torchrun starts them on several machines."""
    num_threads: int = 1
    """Threads of torch's operations on a CPU, in each process."""
    num_envs: int = 32
    """Environments, B."""
    total_steps: int = 1_000_000
    """Environment steps of the run, over all environments; rounded up to whole iterations of
    num_envs x ppo.rollout_length."""
    stagger_steps: int = -1
    """Random steps before the first rollout that spread the environments over as many steps of
    their episodes; they count in no total. Episodes that all last equally long stay in step
    otherwise, and where they are longer than a rollout each rollout shows one part of them. -1: the
    length that the task names for all of its episodes, as Memory Maze does; 0 where it names none,
    or one that a rollout holds."""
    run_dir: str = ""
    """Folder of the run's files; empty: runs/<env>/<date_time>, or with resume the same folder."""
    resume: str = ""
    """A run's folder, or a checkpoint in it, to go on from. Other options change its config, but
    for the task, torso.*, seed, and what the checkpoint's weights and environments do not fit."""
    checkpoint_seconds: float = 60.0
    """Save at the end of an iteration when this long has passed since the last save; 0: always."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept, beside the best."""
    compile: bool = False
    """Compile acting and the torso's layers: it takes one or two minutes of a core, some seconds
    once they are in torch's cache and, on a CPU, a C++ compiler; for torso.kind=transformer."""
    profile: bool = False
    """Profile the third iteration, and print at the end where its time went."""
    dry_run: bool = False
    """Print the bytes of buffer, snapshots and model, and stop before allocating them."""

    def __post_init__(self) -> None:
        """Check ranges and sizes against each other."""
        counts = ("num_envs", "total_steps", "keep_checkpoints", "num_threads")
        check_at_least(self, 1, *counts)
        check_at_least(self, 0, "seed", "checkpoint_seconds", "num_processes")
        if self.stagger_steps < -1:
            raise ValueError(
                f"stagger_steps={self.stagger_steps} must be -1 (the length that the task names, "
                "if it is longer than a rollout), 0 (none) or a number of steps"
            )
        span = self.ppo.bptt_segments * self.torso.segment_length
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
        if self.torso.sublayers.has_dropout:
            raise ValueError(
                "torso.sublayers has a dropout above 0, with which acting and learning cannot "
                "agree; set it to 0 for an agent"
            )
        if self.compile and self.torso.kind != "transformer":
            raise ValueError(
                f"compile=true has no effect with torso.kind={self.torso.kind}; leave it out, or "
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
        """`stagger_steps`; for -1 the task's own `steps_per_episode`, if a rollout is shorter."""
        if self.stagger_steps >= 0:
            return self.stagger_steps
        named: int = getattr(self.env, "steps_per_episode", 0)
        # A rollout as long as an episode shows all of it, in step or not.
        return named if named > self.ppo.rollout_length else 0

    def torch_device(self) -> torch.device:
        """The device that `device` names; see `find_device`."""
        return find_device(self.device)


def find_device(name: str) -> torch.device:
    """The device of a name: auto, cpu, cuda or cuda:N.

    Raises:
        ValueError: it is unknown or not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise ValueError(f"device={name} is unknown; choose auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={name} was asked for, but torch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; use device=cpu, or install a CUDA build"
        )
    return torch.device(name)


def register_schemas() -> None:
    """Tell Hydra the dataclasses behind the YAML files."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    for name, (config, _) in ENVS.items():
        store.store(group="env/schema", name=name, node=config)


def compose_config(overrides: Sequence[str]) -> TrainConfig:
    """The configuration that command-line overrides (`name=value`) describe.

    Raises:
        ValueError: a name or a value is not legal; one sentence says which are.
    """
    check_overrides(overrides)
    try:
        return to_config(_composed(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(_one_sentence(error)) from error


def _composed(overrides: Sequence[str]) -> DictConfig:
    """What Hydra makes of the files and the overrides."""
    register_schemas()
    with initialize_config_module("mtxl_rl.configs", version_base="1.3"):
        return compose("train", overrides=list(overrides))


def to_config(composed: DictConfig) -> TrainConfig:
    """The dataclass behind a composed configuration."""
    config = OmegaConf.to_object(composed)
    assert isinstance(config, TrainConfig), type(config)
    return config


def device_overrides(overrides: Sequence[str]) -> list[str]:
    """What a big GPU's defaults add to the command line, where it does not say otherwise."""
    given = dict(part.split("=", 1) for part in overrides if "=" in part)
    device = given.get("device", "auto")
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    if not on_gpu:
        return []
    gpu = {"model": "base", "num_envs": "512", "policy.precision": "bfloat16"}
    return [f"{key}={value}" for key, value in gpu.items() if key not in given]


def choices(group: str) -> list[str]:
    """The names that a config group offers."""
    folder = resources.files("mtxl_rl.configs") / group
    return sorted(
        path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml")
    )


def check_overrides(overrides: Sequence[str]) -> None:
    """Refuse names that do not exist, with the nearest that do."""
    given = [part.lstrip("+~").split("=", 1) for part in overrides]
    groups = {key: value for key, value, *_ in ([*part, ""] for part in given) if key in GROUPS}
    for group, value in groups.items():
        legal = choices(group)
        if value not in legal and "," not in value:
            raise ValueError(f"{group}={value} is unknown{_nearest(value, legal)}")
    if "env" not in groups:
        raise ValueError(f"env= is missing; choose one of {', '.join(choices('env'))}")
    chosen = [f"{key}={value}" for key, value in groups.items() if "," not in value]
    names = _names(_composed(chosen or ["env=TMaze"]))
    for key, *_ in given:
        if key in GROUPS or key.startswith("hydra") or key in names:
            continue
        if any(key.startswith(name + ".") for name in names if name.endswith("kwargs")):
            continue
        raise ValueError(f"option {key!r} is unknown{_nearest(key, names)}")


def unread_options(config: TrainConfig, overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Those among the overrides that the torso takes, but does not read; and beside which option.

    They are told, not refused: suites and comparisons give every torso the same options.
    """
    torso = config.torso
    kind = f"kind={torso.kind}" if torso.kind != "transformer" else f"long_term={torso.long_term}"
    unread = {f"torso.{name}": f"torso.{kind}" for name in torso.unread}
    if torso.num_parameters:
        unread["torso.width"] = f"torso.num_parameters={torso.num_parameters}"
    named = ((part, unread.get(part.split("=", 1)[0])) for part in overrides)
    return [(part, beside) for part, beside in named if beside is not None]


def _names(config: DictConfig, prefix: str = "") -> list[str]:
    names: list[str] = []
    for key in config:
        node = config._get_node(key)
        names.append(prefix + str(key))
        if isinstance(node, DictConfig) and not node._is_none():
            names += _names(node, f"{names[-1]}.")
    return names


def values(config: DictConfig) -> dict[str, Any]:
    """Every option's value by its dotted name, as in ppo.gamma."""
    every = {name: OmegaConf.select(config, name) for name in _names(config)}
    return {name: value for name, value in every.items() if not isinstance(value, DictConfig)}


def _nearest(name: str, legal: Sequence[str]) -> str:
    if len(legal) > 40:
        return f"; did you mean {' or '.join(nearest_names(name, legal, count=3))}?"
    return f"; choose one of {', '.join(nearest_names(name, legal))}"


def _one_sentence(error: Exception) -> str:
    """Hydra's and OmegaConf's multi-line messages, as one line with the option's name."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, ValueError) and not isinstance(cause, OmegaConfBaseException):
        return str(cause)
    first = str(cause).splitlines()[0]
    key = getattr(cause, "full_key", None)
    if "is not a ListConfig" in first:
        value = getattr(cause, "value", None)
        return f"{key}={value} is no list; write {key}=[{value}]"
    return f"option {key}: {first}" if key else first


def from_options(config_class: type[Config], given: Sequence[str]) -> Config:
    """A dataclass from options `name=value`; one value will do for a list of one.

    Raises:
        ValueError: a name or a value is not legal.
    """
    names = [field.name for field in fields(config_class)]  # type: ignore[arg-type]
    for part in given:
        name, has_value, _ = part.partition("=")
        if name not in names or not has_value:
            raise ValueError(f"{part!r} is no option; choose from {', '.join(names)}, as in name=1")
    options = OmegaConf.from_dotlist(list(given))
    for one in fields(config_class):  # type: ignore[arg-type]
        value = options.get(one.name)
        if get_origin(one.type) is list and isinstance(value, str):
            options[one.name] = [value]
        if one.type is str and isinstance(value, ListConfig):
            options[one.name] = ",".join(str(each) for each in value)  # [a,b] is a,b.
        if one.type is str and one.name in options and value is None:
            options[one.name] = ""  # name= is an empty text, as it is for Hydra.
    return from_document(config_class, options)


def from_document(config_class: type[Config], document: DictConfig | ListConfig) -> Config:
    """A dataclass from what a YAML file or a command line says.

    Raises:
        ValueError: a name or a value is not legal, or one is missing.
    """
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config_class), document))
    except OmegaConfBaseException as error:
        raise ValueError(_one_sentence(error)) from error
    assert isinstance(config, config_class), type(config)
    return config


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the configuration as YAML."""
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")


def run_folder(path: Path) -> Path:
    """The folder of the run that `path` names: itself, or that of a checkpoint file in it."""
    return path.parent.parent if path.is_file() else path


def load_config(
    run_dir: Path,
    overrides: Sequence[str] = (),
    *,
    only: tuple[str, ...] = ("",),
    beside: Sequence[str] = (),
) -> TrainConfig:
    """The configuration that a run was saved with, changed by dotted overrides.

    Args:
        run_dir: Folder of the run.
        overrides: `name=value`, as in env.corridor_length=9.
        only: How the names begin that may change.
        beside: Names that the caller takes itself, for the message.

    Raises:
        ValueError: there is no such run, or an override is not legal.
    """
    path = run_dir / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run_dir} is no run: it has no config.yaml; give the folder of a run")
    try:
        saved = OmegaConf.load(path)
        if not isinstance(saved, DictConfig) or not {"env", "torso", "ppo"} <= saved.keys():
            raise ValueError(
                f"{path} is no agent's configuration: it is cut off, or a language model's "
                "(mtxl_rl.train_lm); give the folder of a run of mtxl_rl.train"
            )
        # A memory that the run lacks says nothing, and its defaults may have changed since.
        for kind in ("slots", "tokens"):
            if saved.torso.long_term != kind:
                saved.torso.pop(kind, None)
        name = saved.env.name
        schema = OmegaConf.structured(TrainConfig)
        schema.env = OmegaConf.structured(ENVS[name][0])
        base = OmegaConf.merge(schema, saved)
        assert isinstance(base, DictConfig)
        fixed = (*GROUPS, "env.name")
        legal = [name for name in _names(base) if name not in fixed and name.startswith(only)]
        for override in overrides:
            key = override.split("=", 1)[0]
            if key not in legal:
                near = _nearest(key, list(dict.fromkeys([*legal, *beside])))
                raise ValueError(f"option {key!r} is unknown or cannot change here{near}")
        merged = OmegaConf.merge(base, OmegaConf.from_dotlist(list(overrides)))
        assert isinstance(merged, DictConfig)
        return to_config(merged)
    except OmegaConfBaseException as error:
        raise ValueError(_one_sentence(error)) from error
