"""What a torso's configuration refuses, and which of its fields each kind reads."""

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mtxl_rl.torso import (
    MemoryTransformer,
    SlotsConfig,
    TokensConfig,
    TorsoConfig,
    build_torso,
    match_parameters,
)
from mtxl_rl.torso.torso_config import KINDS


def test_the_windows_of_the_layers_add_up() -> None:
    assert TorsoConfig(num_layers=3, window_length=40).receptive_field == 120
    assert TorsoConfig(num_layers=3, kind="gru").receptive_field == 0


@pytest.mark.unchecked
def test_integers_of_numpy_become_pythons_which_a_file_can_hold() -> None:
    config = TorsoConfig(width=np.int64(16), memory_layers=(np.int64(2),))  # type: ignore[arg-type]
    assert type(config.width) is int
    assert config.memory_layers == [2]


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (TorsoConfig, {"width": 16.0}, "torso.width=16.0 must be an integer"),
        (TorsoConfig, {"num_layers": "2"}, "torso.num_layers='2' must be an integer"),
        (TorsoConfig, {"memory_layers": 2}, "torso.memory_layers=2 must be a list"),
        (TorsoConfig, {"memory_layers": [1.5]}, "torso.memory_layers=1.5 must be an integer"),
        (TorsoConfig, {"gate_bias": float("nan")}, "torso.gate_bias=nan must be a finite number"),
        (TorsoConfig, {"gate_bias": "2"}, "torso.gate_bias=2 must be a finite number"),
        (
            SlotsConfig,
            {"max_half_life": float("nan")},
            "max_half_life=nan must be in 1 .. 1,000,000",
        ),
        (SlotsConfig, {"max_half_life": 1e8}, "must be in 1 .. 1,000,000"),
        (TorsoConfig, {"long_term": "slots", "slots": {}}, "slots=mtxl_rl.SlotsConfig(...)"),
        (SlotsConfig, {"num_slots": 1.5}, "torso.slots.num_slots=1.5 must be an integer"),
        (TokensConfig, {"num_tokens": None}, "torso.tokens.num_tokens=None must be an integer"),
    ],
)
def test_fields_of_another_type_are_refused_in_one_sentence(
    config: type, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config(**options)


@pytest.mark.parametrize(
    "options",
    [*({"kind": kind} for kind in KINDS), {"long_term": "none"}, {"long_term": "slots"}],
    ids=str,
)
def test_a_torso_is_the_same_whatever_it_takes_and_does_not_read(options: dict[str, str]) -> None:
    config = TorsoConfig(**options, width=16)
    assert ("read" in config.unread) == (options != {"kind": "transformer"})
    weights = {name: weight.shape for name, weight in build_torso(config).state_dict().items()}
    for name in config.unread:
        changed = "parallel" if name == "read" else 2 * getattr(config, name)
        other = build_torso(replace(config, **{name: changed}))
        assert {key: weight.shape for key, weight in other.state_dict().items()} == weights


@pytest.mark.parametrize("kind", KINDS)
def test_a_configuration_that_changes_later_leaves_the_torso_alone(kind: str) -> None:
    config = TorsoConfig(kind=kind, width=16)
    torso = build_torso(config)
    config.num_layers, config.slots.num_slots = 7, 3
    assert torso.config == TorsoConfig(kind=kind, width=16)


@pytest.mark.parametrize("options", [{"kind": "gru"}, {"num_parameters": 100_000}])
def test_what_build_torso_serves_is_not_silently_a_transformer_of_the_default_size(
    options: dict,
) -> None:
    config = TorsoConfig(**options)
    with pytest.raises(ValueError, match=r"build the torso with mtxl_rl\.build_torso"):
        MemoryTransformer(config)
    MemoryTransformer(match_parameters(replace(config, kind="transformer")))


def test_fewer_parameters_than_the_narrowest_torso_has_are_refused() -> None:
    with pytest.raises(ValueError, match=r"num_parameters=10 is too few: .* torso\.width=4"):
        match_parameters(TorsoConfig(num_parameters=10))
