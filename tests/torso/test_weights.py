"""A torso on disk."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mtxl_rl import load_torso, save_torso
from mtxl_rl.torso import TorsoConfig, build_torso
from mtxl_rl.torso.torso_config import SlotsConfig, SublayersConfig
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
def test_a_loaded_torso_equals_the_saved_one(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torso = build_torso(CONFIGS[name])
    save_torso(torso, tmp_path / "torso.safetensors")
    again = load_torso(tmp_path / "torso.safetensors")
    assert again.config == torso.config
    x, is_first = torch.randn(2, 70, torso.config.width), torch.zeros(2, 70, dtype=torch.bool)
    before, after = (
        network(x, network.initial_state(2), is_first)[0] for network in (torso, again)
    )
    torch.testing.assert_close(before, after)


def test_numpy_numbers_are_saved_as_numbers(tmp_path: Path) -> None:
    torso = build_torso(CONFIGS["slots"])
    torso.config.slots.num_slots = np.array([3])[0]  # The shape checks refuse it as an argument.
    save_torso(torso, tmp_path / "torso.safetensors")
    assert load_torso(tmp_path / "torso.safetensors").config == CONFIGS["slots"]


@pytest.mark.training
def test_the_torso_of_a_run_can_be_loaded(tmp_path: Path) -> None:
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


class Holder(nn.Module):
    """A torso and two maps that share a weight."""

    def __init__(self, torso: nn.Module) -> None:
        super().__init__()
        self.torso = torso
        self.encode, self.decode = nn.Linear(4, 4), nn.Linear(4, 4)
        self.decode.weight = self.encode.weight


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated")  # torch's own
@pytest.mark.parametrize("inside", ["torso", "compiled torso", "compiled", "tied"])
def test_a_torso_is_loaded_from_the_file_of_its_parent(inside: str, tmp_path: Path) -> None:
    path = tmp_path / "torso.safetensors"
    torso = build_torso(CONFIGS["delta"])
    if inside == "compiled":
        save_torso(torch.compile(torso), path)
    elif inside == "compiled torso":
        save_torso(torso, path, within=Holder(torch.compile(torso)))
    elif inside == "tied":
        save_torso(torso, path, within=torch.compile(Holder(torso)))
        assert {"encode.weight", "decode.weight"} <= load_file(path).keys()
    else:
        save_torso(torso, path, within=Holder(torso))
    weights = load_torso(path).state_dict()
    assert all(torch.equal(weights[key], weight) for key, weight in torso.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_torso_is_loaded_in_its_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    torso = build_torso(CONFIGS["gru"]).to(dtype)
    save_torso(torso, tmp_path / "torso.safetensors")
    again = load_torso(tmp_path / "torso.safetensors")
    for weight, other in zip(torso.parameters(), again.parameters(), strict=True):
        assert torch.equal(weight, other)
        assert other.dtype == dtype


def test_a_torso_under_another_name_is_not_saved(tmp_path: Path) -> None:
    path = tmp_path / "torso.safetensors"
    torso, other = build_torso(CONFIGS["delta"]), build_torso(CONFIGS["delta"])
    for holder in (nn.Linear(2, 2), Holder(other)):
        with pytest.raises(ValueError, match=r"\.torso is not this torso"):
            save_torso(torso, path, within=holder)
    assert not path.exists()


@pytest.mark.parametrize(
    ("fields", "weights", "words"),
    [
        ({"not_yet": 1}, {}, "not_yet"),
        ({}, {name: torch.zeros(1) for name in "abc"}, "Missing key"),
    ],
)
def test_a_torso_of_another_version_is_refused(
    fields: dict, weights: dict, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "torso.safetensors"
    config = json.dumps(asdict(CONFIGS["delta"]) | fields)
    save_file(weights, path, metadata={"mtxl_rl.torso": config})
    with pytest.raises(ValueError, match=f"this version of mtxl_rl cannot build: .*{words}"):
        load_torso(path)


@pytest.mark.parametrize(
    "size",
    [
        {"width": 2**24},
        {"num_layers": 10**12},
        {"mogrifier_rounds": 10**12},
        {"window_length": 2**70},
    ],
)
def test_a_torso_larger_than_its_weights_is_refused_before_it_is_built(
    size: dict[str, int], tmp_path: Path
) -> None:
    path = tmp_path / "torso.safetensors"
    config = asdict(CONFIGS["delta"]) | size
    save_file({"x": torch.zeros(1)}, path, metadata={"mtxl_rl.torso": json.dumps(config)})
    with pytest.raises(ValueError, match="cannot build"):
        load_torso(path)


@pytest.mark.parametrize("config", ["[]", "7", "{", "[" * 100_000, '{"width": "x"}'])
def test_a_torso_with_a_damaged_configuration_is_refused(config: str, tmp_path: Path) -> None:
    path = tmp_path / "torso.safetensors"
    save_file({"x": torch.zeros(1)}, path, metadata={"mtxl_rl.torso": config})
    with pytest.raises(ValueError, match="cannot build"):
        load_torso(path)


def test_a_file_without_a_torso_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"contains no torso; write it with mtxl_rl"):
        load_torso(tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ValueError, match="is not a safetensors file"):
        load_torso(tmp_path / "text")
    with pytest.raises(OSError, match="missing"):
        load_torso(tmp_path / "missing")
