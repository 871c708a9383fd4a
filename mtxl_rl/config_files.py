"""Save and load configurations."""

import io
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast

import yaml  # type: ignore[import-untyped]
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mtxl_rl.command import readable_errors
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.registry import env_entry
from mtxl_rl.tracking.files import write_text

Config = TypeVar("Config")
_VERSION_KEY = "mtxl_rl_version"


def from_document(config_class: type[Config], document: DictConfig | ListConfig) -> Config:
    """A dataclass from the content of a YAML file.

    Raises:
        ValueError: a name or a value is not legal, or one is missing.
    """
    with readable_errors():
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(config_class), document))
    assert isinstance(config, config_class), type(config)
    return config


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """The options as plain values, with the version of mtxl_rl that wrote them."""
    options = OmegaConf.to_container(OmegaConf.structured(config))
    assert isinstance(options, dict)
    return {_VERSION_KEY: version("mtxl_rl"), **options}


def config_from_dict(document: Any, *, path: Path) -> TrainConfig:  # noqa: ANN401
    """The configuration of a `config_to_dict`.

    Raises:
        ValueError: an option is unknown or not legal. The message names `path`, the option, and
            the version that wrote it.
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"{path}: the options are a {type(document).__name__}, not a mapping")
    options = dict(document)
    writer = options.pop(_VERSION_KEY, "of an unknown version")
    try:
        with readable_errors():
            schema = OmegaConf.structured(TrainConfig)
            schema.env = OmegaConf.structured(env_entry(options["env"]["name"]).config_class)
            config = OmegaConf.to_object(OmegaConf.merge(schema, options))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: {reason}. The file was written by mtxl_rl {writer}, and this is mtxl_rl "
            f"{version('mtxl_rl')}: install that version, or change the file"
        ) from error
    assert isinstance(config, TrainConfig), type(config)
    return config


def save_config(config: TrainConfig, path: Path) -> None:
    """Write the configuration as YAML."""
    write_text(path, OmegaConf.to_yaml(config_to_dict(config)))


def read_yaml(path: Path) -> DictConfig | ListConfig:
    """The content of a YAML file that mtxl_rl wrote.

    Raises:
        ValueError: it is not YAML, or has aliases, which can stand for any amount of memory.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has an alias, *name")
        return OmegaConf.load(io.StringIO(text))
    except (yaml.YAMLError, ValueError, OSError, RecursionError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is not valid YAML: {reason}; restore it, or give another folder"
        ) from error


def load_config(run_dir: Path) -> TrainConfig:
    """The configuration that a run was saved with.

    Raises:
        FileNotFoundError: the folder does not exist.
        ValueError: it is not a run, or its config.yaml cannot be read.
    """
    path = run_dir / "config.yaml"
    if not run_dir.exists():
        raise FileNotFoundError(
            f"{run_dir} does not exist; give a run's folder, or a checkpoint file (.pt)"
        )
    if not path.is_file():
        raise ValueError(f"{run_dir} is not a run: it has no config.yaml; give a run's folder")
    saved = read_yaml(path)
    if not isinstance(saved, DictConfig) or not {"env", "torso", "ppo"} <= saved.keys():
        raise ValueError(
            f"{path} is not an agent's configuration: it is cut off, or a language model's "
            "(mtxl_rl.train_lm); give the folder of an mtxl_rl.train run"
        )
    document = cast("dict[str, Any]", OmegaConf.to_container(saved))
    return config_from_dict(document, path=path)
