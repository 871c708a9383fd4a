"""CleanRL's ppo_trxl.py, run unchanged from its file as a program.

Its encoder of pictures asks for 84 x 84 pixels, so smaller ones are padded with zeros. The packages
of environments that it imports are replaced by empty modules.
"""

import argparse
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl.config import TrainConfig
from peer_systems.turns import ENDLESS, PacedEnv, System, run

PIXELS = 84


class AsSyncVectorEnv:
    """The paced environments where the program expects its own."""

    def __init__(self, env: PacedEnv) -> None:
        self.env = env
        self.single_action_space = env.single_action_space
        space = env.single_observation_space
        if env.is_image:
            space = spaces.Box(0, 255, (PIXELS, PIXELS, space.shape[2]), np.uint8)
        self.single_observation_space = space
        # The program counts the reset row of NEXT_STEP autoreset as a step of the episode.
        spec = types.SimpleNamespace(max_episode_steps=env.episode_length + 1)
        self.envs = [types.SimpleNamespace(spec=spec)]

    def pad(self, observation: NDArray[Any]) -> NDArray[Any]:
        """Pictures with zeros at the right and at the bottom."""
        if not self.env.is_image:
            return observation
        height, width = observation.shape[1:3]
        return np.pad(observation, ((0, 0), (0, PIXELS - height), (0, PIXELS - width), (0, 0)))

    def reset(self, seed: int) -> tuple[NDArray[Any], dict[str, Any]]:
        """The current observation."""
        observation, info = self.env.reset(seed=seed)
        return self.pad(observation), info

    def step(self, actions: NDArray[Any]) -> tuple[Any, ...]:
        """One step; actions are [B, 1]. The program must see an episode's end to print."""
        observation, *outcome, _ = self.env.step(actions[:, 0])
        return self.pad(observation), *outcome, {"final_info": [{"episode": {"r": 0.0, "l": 0.0}}]}


def empty_module(name: str, *attributes: str) -> None:
    """Let the program import a package that it does not need here."""
    module = types.ModuleType(name)
    for attribute in attributes:
        setattr(module, attribute, None)
    sys.modules[name] = module


def build(options: argparse.Namespace, config: TrainConfig, env: PacedEnv) -> System:
    """The program with the options of the comparison."""
    if not options.cleanrl_file:
        raise ValueError("no file; pass --cleanrl-file PATH of CleanRL's ppo_trxl.py")
    empty_module("memory_gym")
    empty_module("pom_env", "PoMEnv")
    empty_module("minigrid")
    empty_module("minigrid.wrappers", "ImgObsWrapper", "RGBImgPartialObsWrapper")
    path, adapter = Path(options.cleanrl_file), AsSyncVectorEnv(env)
    code = compile(path.read_text(), path, "exec")
    library: dict[str, Any] = {"__name__": "ppo_trxl", "__file__": str(path)}
    sys.modules["ppo_trxl"] = types.ModuleType("ppo_trxl")
    exec(code, library)
    sizes = {
        "num_envs": env.num_envs, "num_steps": config.ppo.rollout_length,
        "num_minibatches": config.ppo.num_minibatches, "update_epochs": config.ppo.num_epochs,
        "trxl_num_layers": options.layers, "trxl_num_heads": config.torso.num_heads,
        "trxl_dim": options.width, "trxl_memory_length": options.window,
    }  # fmt: skip
    agent = library["Agent"](
        library["Args"](**sizes), adapter.single_observation_space, (env.num_actions,),
        env.episode_length + 1,
    )  # fmt: skip

    def train() -> None:
        gymnasium.vector.SyncVectorEnv = lambda _: adapter  # type: ignore[assignment, misc]
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in sizes.items()]
        sys.argv = [str(path), "--no-cuda", f"--total-timesteps={ENDLESS}", *flags]
        exec(code, {"__name__": "__main__", "__file__": str(path)})

    def act(rows: int) -> Callable[[], object]:
        observation = adapter.pad(env.observations(rows))
        episode = torch.zeros(rows, env.episode_length + 1, options.layers, options.width)
        mask = torch.ones(rows, options.window, dtype=torch.bool)
        indices = torch.arange(options.window).repeat(rows, 1)

        @torch.no_grad()
        def step() -> None:
            window = library["batched_index_select"](episode, 1, indices)
            action, *_, memory = agent.get_action_and_value(
                torch.Tensor(observation), window, mask, indices
            )
            episode[:, options.window] = memory
            action.cpu().numpy()

        return step

    parameters = sum(parameter.numel() for parameter in agent.parameters())
    return System("CleanRL ppo_trxl", parameters, train, act)


if __name__ == "__main__":
    run(build)
