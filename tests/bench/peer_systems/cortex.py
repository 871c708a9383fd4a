"""cortexcore's networks: Transformer-XL or AGaLiTe with GRU gates, or mLSTM.

It is a library of networks, so only learning and acting of the network are measured. On a CPU it
compiles AGaLiTe alone, by a loop over all steps that takes minutes; here that loop runs eagerly.
"""

import argparse
import importlib.metadata

import torch
from cortex import CortexStackConfig, build_cortex
from cortex.config import (
    AGaLiTeCellConfig,
    BlockConfig,
    PostUpGatedBlockConfig,
    PreUpBlockConfig,
    XLCellConfig,
    mLSTMCellConfig,
)
from torch import Tensor

from mtxl_rl.config import TrainConfig
from peer_systems.network import network_system
from peer_systems.turns import PacedEnv, System, run


def block_of(options: argparse.Namespace, num_heads: int) -> BlockConfig:
    """The block that `options.system` names, as the library's patterns put it together."""
    if options.system == "cortex-xl":
        cell = XLCellConfig(n_heads=num_heads, mem_len=options.window)
        return PostUpGatedBlockConfig(cell=cell)
    if options.system == "cortex-agalite":
        return PostUpGatedBlockConfig(cell=AGaLiTeCellConfig(n_heads=num_heads))
    return PreUpBlockConfig(cell=mLSTMCellConfig(num_heads=num_heads))


def build(options: argparse.Namespace, config: TrainConfig, env: PacedEnv) -> System:
    """A stack of `options.layers` blocks."""
    torch.compiler.set_stance("force_eager")
    block = block_of(options, config.torso.num_heads)
    stack = build_cortex(CortexStackConfig(blocks=[block] * options.layers, d_hidden=options.width))

    def forward(x: Tensor, is_first: Tensor) -> Tensor:
        return stack(x, None, resets=is_first)[0]

    def start(rows: int):  # noqa: ANN202 - a function of tensors.
        state = None
        resets = torch.zeros(rows, dtype=torch.bool)

        def step(x: Tensor) -> Tensor:
            nonlocal state
            y, state = stack.step(x, state, resets=resets)
            return y

        return step

    version = importlib.metadata.version("cortexcore")
    title = f"cortexcore {version}, {type(block.cell).__name__.removesuffix('CellConfig')}"
    return network_system(title, stack, options, config, env.turns, forward=forward, start=start)


if __name__ == "__main__":
    run(build)
