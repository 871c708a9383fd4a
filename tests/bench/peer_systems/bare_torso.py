"""This library's torso alone; `options.torso` names it."""

import argparse

import torch
from torch import Tensor

import mtxl_rl
from mtxl_rl.config import TrainConfig
from mtxl_rl.torso import build_torso
from peer_systems.network import network_system
from peer_systems.turns import PacedEnv, System, run


def build(options: argparse.Namespace, config: TrainConfig, env: PacedEnv) -> System:
    """The torso with empty memories."""
    torso = build_torso(config.torso)

    def forward(x: Tensor, is_first: Tensor) -> Tensor:
        return torso(x, torso.initial_state(len(x)), is_first)[0]

    def start(rows: int):  # noqa: ANN202 - a function of tensors.
        cache = torso.prefill(torso.initial_state(rows))
        is_first = torch.zeros(rows, dtype=torch.bool)
        return lambda x: torso.decode_step(x, cache, is_first)

    title = f"mtxl_rl {mtxl_rl.__version__}, {options.torso}"
    return network_system(title, torso, options, config, env.turns, forward=forward, start=start)


if __name__ == "__main__":
    run(build)
