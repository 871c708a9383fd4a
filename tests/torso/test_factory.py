"""Every torso of the command line builds, at the size that is asked for, and plays and learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mtxl_rl.command import choices
from mtxl_rl.compose import compose_config
from mtxl_rl.torso import TorsoConfig, build_torso, count_parameters, match_parameters
from mtxl_rl.torso.torso_config import long_term_names
from mtxl_rl.training.trainer import run_until_signal as run

TORSOS = choices("torso")


def test_the_command_line_offers_every_baseline_and_every_long_term_memory() -> None:
    assert {"mlp", "gru", "lstm", "trxl", "gtrxl", "mtxl"} <= set(TORSOS)
    offered = {compose_config(["env=TMaze", f"torso={name}"]).torso.long_term for name in TORSOS}
    assert offered == set(long_term_names())


@pytest.mark.parametrize("name", TORSOS)
@pytest.mark.training
def test_every_torso_can_be_built_to_the_size_of_another(name: str) -> None:
    target = count_parameters(compose_config(["env=TMaze", "model=tiny"]).torso)
    config = compose_config(["env=TMaze", f"torso={name}", f"torso.num_parameters={target}"]).torso
    torso = build_torso(config)
    count = sum(parameter.numel() for parameter in torso.parameters())
    width, step = torso.config.width, torso.config.width_multiple
    for other in (width - step, width + step):  # No legal width comes nearer.
        neighbour = count_parameters(replace(torso.config, width=other))
        assert abs(neighbour - target) >= abs(count - target)
    assert abs(count / target - 1) < 0.05
    assert count == count_parameters(config)
    assert match_parameters(match_parameters(config)) == match_parameters(config)


@pytest.mark.parametrize("options", [
    *([f"torso={name}"] for name in TORSOS),
    ["torso.long_term=slots", "torso.slots.is_shared=true", "torso.slots.cell=nbrc"],
    ["torso.long_term=tokens", "torso.tokens.bottleneck=true", "torso.position=rotary"],
    ["torso.long_term=linear", "torso.decay=free", "torso.memory_layers=[2]"],
])  # fmt: skip
@pytest.mark.training
def test_every_torso_trains_and_acts_as_it_learns(options: list[str], tmp_path: Path) -> None:
    folder, _ = run(compose_config([
        "env=TMaze", "env.corridor_length=9", "num_envs=4", "total_steps=256", "device=cpu",
        *options, "torso.width=16", "torso.window_length=4", "torso.segment_length=4",
        "ppo.rollout_length=32", "ppo.bptt_segments=4", "ppo.memory_refresh=epoch",
        f"run_dir={tmp_path / 'run'}",
    ]))  # fmt: skip
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 2  # PPO stops by itself where acting and learning disagree


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_recurrent_torso_is_torchs_own_cell_step_by_step(kind: str) -> None:
    torch.manual_seed(0)
    torso = build_torso(TorsoConfig(kind=kind, width=6, num_layers=2)).double()
    x, is_first = torch.randn(4, 19, 6).double(), torch.rand(4, 19) < 0.3
    y, _ = torso(x, torso.initial_state(4), is_first)
    for row in range(4):
        state = None
        for t in range(19):
            state = None if is_first[row, t] else state
            out, state = torso.cells(x[row, t, None, None], state)
            torch.testing.assert_close(y[row, t], torso.norm(out[0, 0]))


@pytest.mark.parametrize(
    ("options", "num_parameters"),
    [
        ({}, 16948),
        ({"long_term": "linear", "decay": "fixed"}, 16880),
        ({"long_term": "agalite"}, 18656),
        ({"long_term": "slots"}, 17408),
        ({"long_term": "tokens"}, 12032),
        ({"long_term": "none"}, 11648),
        ({"kind": "gru"}, 3296),
        ({"kind": "lstm"}, 4384),
        ({"gate": "residual"}, 7636),
        ({"gate": "input"}, 9172),
        ({"gate": "output"}, 9268),
        ({"gate": "highway"}, 9268),
        ({"gate": "sigtanh"}, 10804),
        ({"gate": "brc"}, 12532),
        ({"gate": "nbrc"}, 15412),
        ({"position": "learned"}, 16596),
        ({"position": "rotary"}, 16372),
        ({"position": "none"}, 16372),
    ],
)
def test_sizes_stay(options: dict[str, Any], num_parameters: int) -> None:
    """Saved weights fit, and published numbers of parameters are true."""
    sizes = {"width": 16, "num_heads": 2, "window_length": 4, "segment_length": 4}
    torso = build_torso(TorsoConfig(**sizes | options))
    assert sum(weight.numel() for weight in torso.parameters()) == num_parameters
