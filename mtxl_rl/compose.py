"""A training run's configuration from overrides and presets, and as names and values."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from operator import attrgetter
from typing import Any, cast

import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from mtxl_rl.command import (
    Command,
    choices,
    compose_command,
    options_of,
    value_of,
)
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.names import check_choice
from mtxl_rl.envs.registry import ENVS
from mtxl_rl.torso import TorsoConfig

GROUPS = ("env", "torso", "model")


@cache
def register_schemas() -> None:
    """Store the dataclasses behind the YAML files in Hydra's ConfigStore."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    for name, (config, _) in ENVS.items():
        store.store(group="env/schema", name=name, node=config)


def env_name(preset: str) -> str:
    """The environment behind configs/env/<preset>.yaml.

    The file's first default is the environment's schema, or the preset that it changes.
    """
    document = OmegaConf.load(str(resources.files("mtxl_rl.configs") / "env" / f"{preset}.yaml"))
    base = str(document.defaults[0])
    is_schema = base.startswith("schema/")
    return base.removeprefix("schema/").removesuffix("@env") if is_schema else env_name(base)


def env_class(preset: str) -> type:
    """The options of a preset's environment, a dataclass."""
    return ENVS[env_name(preset)].config_class


def train_command(overrides: Sequence[str], *, usage: str = "") -> Command:
    """The command line of a new run, with the options of the environment that it chooses."""
    register_schemas()
    env = value_of(overrides, "env")
    presets = env.split(",") if env else []
    for preset in presets:
        check_choice("env", preset, choices("env"))
    options = options_of(TrainConfig, env=[env_class(preset) for preset in presets])
    return Command(usage=usage, options=options, base="train", groups=GROUPS, required=["env"])


def compose_config(overrides: Sequence[str]) -> TrainConfig:
    """The configuration that command-line overrides (`name=value`) describe.

    Raises:
        ValueError: a name or a value is not legal. The message lists the legal ones.
    """
    config = compose_command(train_command(overrides), overrides)
    assert isinstance(config, TrainConfig), type(config)
    return config


@cache
def _torso_presets() -> dict[str, dict[str, Any]]:
    """The options that each file in configs/torso sets."""
    folder = resources.files("mtxl_rl.configs") / "torso"
    files = {name: OmegaConf.load(str(folder / f"{name}.yaml")) for name in choices("torso")}
    return {
        name: {"kind": "transformer", **cast("dict[str, Any]", OmegaConf.to_container(file))}
        for name, file in files.items()
    }


def torso_preset(torso: TorsoConfig) -> str:
    """The name of the preset in configs/torso that fits the options best, as gtrxl."""
    fitting = {
        name: len(options)
        for name, options in _torso_presets().items()
        if all(getattr(torso, key, None) == value for key, value in options.items())
    }
    return max(fitting, key=lambda name: fitting[name], default=torso.kind)


def preset_options() -> set[str]:
    """The options that a torso's preset stands for, as torso.kind."""
    return {f"torso.{key}" for options in _torso_presets().values() for key in options}


def device_overrides(overrides: Sequence[str]) -> list[str]:
    """Defaults for a GPU, without the options that the command line sets."""
    device = value_of(overrides, "device") or "auto"
    on_gpu = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
    gpu = {"model": "base", "num_envs": "512"}
    unset = {key: value for key, value in gpu.items() if value_of(overrides, key) is None}
    return [f"{key}={value}" for key, value in unset.items()] if on_gpu else []


def options_without_effect(config: TrainConfig, overrides: Sequence[str]) -> list[tuple[str, str]]:
    """Overrides that the torso accepts but does not read, each with the option that causes it.

    They are reported, not refused: suites and comparisons give every torso the same options.
    """
    torso = config.torso
    kind = f"kind={torso.kind}" if torso.kind != "transformer" else f"long_term={torso.long_term}"
    causes = {f"torso.{name}": f"torso.{kind}" for name in torso.unread}
    if torso.num_parameters:
        causes["torso.width"] = f"torso.num_parameters={torso.num_parameters}"
    pairs = [(part, causes.get(part.partition("=")[0])) for part in overrides]
    return [(part, cause) for part, cause in pairs if cause is not None]


def values(config: TrainConfig) -> Mapping[str, Any]:
    """Every option's value by its dotted name, as in ppo.gamma."""
    options = options_of(TrainConfig, env=[type(config.env)])
    return {option.name: attrgetter(option.name)(config) for option in options}
