"""A torso on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mtxl_rl import load_torso, save_torso
from mtxl_rl.torso import TorsoConfig, build_torso
from mtxl_rl.torso.config import SlotsConfig, SublayersConfig
from mtxl_rl.train import main

CONFIGS = {
    "delta": TorsoConfig(width=16, num_layers=2, num_heads=2, memory_layers=[2]),
    "slots": TorsoConfig(
        width=16,
        num_heads=2,
        long_term="slots",
        slots=SlotsConfig(num_slots=3),
        sublayers=SublayersConfig(glu=True),
    ),
    "gru": TorsoConfig(kind="gru", num_parameters=5_000),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_torso_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torso = build_torso(CONFIGS[name])
    save_torso(torso, tmp_path / "torso.safetensors")
    again = load_torso(tmp_path / "torso.safetensors")
    assert again.config == torso.config
    x, is_first = torch.randn(2, 70, torso.config.width), torch.zeros(2, 70, dtype=torch.bool)
    before, after = (one(x, one.initial_state(2), is_first)[0] for one in (torso, again))
    assert torch.equal(before, after)


def test_what_a_run_learned_is_a_torso_for_others(tmp_path: Path) -> None:
    main([
        "env=TMaze", "model=tiny", "num_envs=4", "total_steps=512", "device=cpu",
        f"run_dir={tmp_path / 'run'}",
    ])  # fmt: skip
    torso = load_torso(tmp_path / "run" / "policy.safetensors")
    assert torso.config.width == 64
    saved = torch.load(next((tmp_path / "run" / "checkpoints").glob("step*.pt")))
    weights = saved["state"]["agent"]["policy"]
    for key, weight in torso.state_dict().items():
        assert torch.equal(weight, weights[f"torso.{key}"])


def test_a_file_without_a_torso_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"says of no torso; write it with mtxl_rl.save_torso"):
        load_torso(tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="is no safetensors file"):
        load_torso(tmp_path / "text")
    with pytest.raises(OSError, match="missing"):
        load_torso(tmp_path / "missing")
