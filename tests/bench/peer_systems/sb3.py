"""sb3-contrib's RecurrentPPO: actor and critic have an LSTM each, its default."""

import argparse
from collections.abc import Callable

import numpy as np
import sb3_contrib
from recurrent_ppo import AsVecEnv, Peer

from mtxl_rl.config import TrainConfig
from peer_systems.turns import PacedEnv, System, run


def build(options: argparse.Namespace, config: TrainConfig, env: PacedEnv) -> System:
    """RecurrentPPO in the paced environments."""
    peer = Peer(AsVecEnv(env, stagger_steps=0), config, num_threads=options.threads)

    def act(rows: int) -> Callable[[], object]:
        observation = env.observations(rows)
        state, is_first = None, np.zeros(rows, dtype=bool)

        def step() -> None:
            nonlocal state
            _, state = peer.model.predict(observation, state, is_first)

        return step

    def train() -> None:
        while True:
            peer.iterate()

    title = f"sb3-contrib {sb3_contrib.__version__} RecurrentPPO, LSTM"
    return System(title, peer.num_weights, train, act)


if __name__ == "__main__":
    run(build)
