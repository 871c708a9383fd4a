"""Trained agents in files: options, spaces and weights, read from a run, checkpoint or safetensors.

Each file that a run writes describes its agent by itself, so that it can be moved anywhere.
"""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import gymnasium
import torch
from torch import Tensor

from mtxl_rl.agents.policy import Policy
from mtxl_rl.build import build_policy
from mtxl_rl.config import TrainConfig
from mtxl_rl.config_files import config_from_dict, config_to_dict, load_config
from mtxl_rl.envs.space_json import space_from_json, space_to_json
from mtxl_rl.torso import save_torso
from mtxl_rl.torso.weights import BUILD_ERRORS, check_weights, read_safetensors
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.files import atomic_write

SAFETENSORS = ".safetensors"
POLICY_FILE = "policy.safetensors"
HUB_PREFIX = "hf://"
_METADATA = "mtxl_rl.agent"


@dataclass(frozen=True, kw_only=True)
class SavedAgent:
    """A trained agent, read from a file."""

    path: Path
    """The file it was read from."""
    config: TrainConfig
    """Options of its run."""
    single_observation_space: gymnasium.Space[Any]
    single_action_space: gymnasium.Space[Any]
    step: int
    """Environment steps of its training."""
    weights: Mapping[str, Tensor]
    """`state_dict` of the policy."""

    def build_policy(self, device: torch.device) -> Policy:
        """The policy with its weights.

        Raises:
            ValueError: the weights do not fit the options.
        """
        try:
            check_weights(
                self.config.torso,
                lambda: build_policy(self.config, self, torch.device("meta")),
                self.weights,
            )
            policy = build_policy(self.config, self, device)
            policy.load_state_dict(self.weights)
        except BUILD_ERRORS as error:
            raise ValueError(
                f"{self.path}: the weights do not fit the policy that its options describe "
                "(an edited config.yaml, or another version of mtxl_rl)"
            ) from error
        return policy.eval()

    def copy_weights(self, policy: Policy) -> list[str]:
        """Copy the weights into a policy of other observations, actions or signals.

        Returns:
            The names of the policy's weights that the agent lacks or has in another shape. They are
            left as they are.

        Raises:
            ValueError: the torsos differ.
        """
        weights = policy.state_dict()
        fitting = {
            name: self.weights[name]
            for name, weight in weights.items()
            if name in self.weights and self.weights[name].shape == weight.shape
        }
        others = [name for name in weights if name not in fitting]
        if any(name.startswith("torso.") for name in others):
            here, there = policy.torso.config, self.config.torso
            names = (field.name for field in fields(there))
            options = [
                f"torso.{name}={getattr(there, name)}"
                for name in names
                if getattr(there, name) != getattr(here, name)
            ]
            raise ValueError(f"the torso of {self.path} has other weights; set {' '.join(options)}")
        policy.load_state_dict(fitting, strict=False)
        return others


def describe_agent(config: TrainConfig, env: Any, *, step: int) -> str:  # noqa: ANN401
    """The JSON that a file must hold with the weights; `env` has the spaces."""
    return json.dumps({
        "step": step,
        "config": config_to_dict(config),
        "observation_space": space_to_json(env.single_observation_space),
        "action_space": space_to_json(env.single_action_space),
    })  # fmt: skip


def save_policy(policy: Policy, path: Path, *, description: str) -> None:
    """Write the weights and the description as safetensors."""
    with atomic_write(path) as temporary:
        save_torso(policy.torso, temporary, within=policy, metadata={_METADATA: description})


def read_agent(path: Path, *, which: str = "latest") -> SavedAgent:
    """Read a trained agent.

    Args:
        path: The folder of a run or of a shared agent, a checkpoint (.pt), a policy.safetensors, or
            hf://USER/NAME, a repository of the Hugging Face hub.
        which: In a run's folder, the latest or best checkpoint.

    Raises:
        FileNotFoundError: there is no such file or folder, or no checkpoint in it.
        ValueError: the file is damaged, is not an agent, or has an option that is not legal.
        ImportError: it is in a repository, and huggingface_hub is missing.
    """
    path = _agent_path(path)
    if path.suffix == SAFETENSORS:
        description, weights = _read_safetensors(path)
        return _saved_agent(path, description, weights)
    file = checkpoint.find(path, which=which)
    state = checkpoint.load(path, which=which)
    agent: Any = state["agent"]
    try:
        weights = agent["average"]["weights"] or agent["policy"]
    except (LookupError, TypeError):
        weights = {}
    if not isinstance(weights, dict) or not weights:
        raise ValueError(f"{file} holds no policy's weights; give a checkpoint that mtxl_rl wrote")
    saved = _saved_agent(file, state["description"], weights)
    # In a run's folder, config.yaml is what resuming and people change.
    return replace(saved, config=load_config(path)) if path.is_dir() else saved


def saved_config(path: Path) -> TrainConfig:
    """A run's options, from its folder or from one of its files; see `read_agent`."""
    path = _agent_path(path)
    if not path.is_file():
        return load_config(path)
    if path.suffix == SAFETENSORS:
        return _config(path, _read_safetensors(path)[0])
    state = checkpoint.load(path, map_location="meta")
    return _config(path, state["description"])


def local_copy(path: Path) -> Path:
    """The path itself, or for hf://USER/NAME the folder of its downloaded copy.

    Raises:
        ImportError: it is a repository, and huggingface_hub is missing.
    """
    # pathlib writes hf://USER/NAME with one slash.
    scheme, _, name = path.as_posix().partition(":/")
    if f"{scheme}://" != HUB_PREFIX:
        return path
    require_hub()
    import huggingface_hub

    return Path(huggingface_hub.snapshot_download(name))


def require_hub() -> None:
    """Raise an ImportError that names the extra, if huggingface_hub is missing."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise ImportError(f"{HUB_PREFIX} needs huggingface_hub: pip install 'mtxl_rl[hub]'")


def _agent_path(path: Path) -> Path:
    """The local path of an agent; for the folder of a shared one, its policy.safetensors."""
    path = local_copy(path)
    is_shared = (path / POLICY_FILE).is_file() and not (path / "config.yaml").exists()
    return path / POLICY_FILE if is_shared else path


def run_folder(path: Path) -> Path | None:
    """The folder of the run that `path` names: itself, or that of a checkpoint file in it.

    None for a file that was moved out of its run's folder.
    """
    if not path.is_file():
        return path
    return path.parent.parent if (path.parent.parent / "config.yaml").is_file() else None


def _saved_agent(path: Path, description: Any, weights: Mapping[str, Tensor]) -> SavedAgent:  # noqa: ANN401
    config = _config(path, description)
    try:
        document = json.loads(description)
        observation_space, action_space = (
            space_from_json(document[name]) for name in ("observation_space", "action_space")
        )
        step = int(document["step"])
    except Exception as error:  # Gymnasium's spaces raise many types.
        raise _not_described(path, error) from error
    return SavedAgent(
        path=path,
        config=config,
        single_observation_space=observation_space,
        single_action_space=action_space,
        step=step,
        weights=weights,
    )


def _not_described(path: Path, error: Exception) -> ValueError:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return ValueError(
        f"{path} holds a damaged description of its agent ({reason}); give a file that mtxl_rl "
        "wrote"
    )


def _config(path: Path, description: Any) -> TrainConfig:  # noqa: ANN401
    try:
        document = json.loads(description)["config"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _not_described(path, error) from error
    return config_from_dict(document, path=path)


def _read_safetensors(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The description and the weights of a file of `save_policy`."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a run's folder, a checkpoint file (.pt) or a "
            "policy.safetensors"
        )
    description, weights = read_safetensors(path, _METADATA)
    if description is None:
        raise ValueError(
            f"{path} does not describe an agent (options and spaces); give the policy.safetensors "
            "of a run, or the run's folder"
        )
    return description, weights
