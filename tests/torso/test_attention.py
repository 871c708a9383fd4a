"""The attention against other implementations, for every kind of positions."""

import pytest
import torch
from torch import Tensor

from mtxl_rl.torso import TorsoConfig, build_torso
from mtxl_rl.torso.attention import WindowAttention
from mtxl_rl.torso.positions import RelativePositions, RotaryPositions, skew, unskew
from mtxl_rl.torso.torso_config import POSITIONS


def attention(position: str, *, num_persistent: int = 0) -> WindowAttention:
    torch.manual_seed(0)
    config = TorsoConfig(
        width=8, num_heads=2, window_length=5, segment_length=5, num_persistent=num_persistent,
        position=position,
    )  # fmt: skip
    return WindowAttention(config).double()


def visible(num_steps: int) -> Tensor:
    distance = torch.arange(num_steps)[:, None] + 5 - torch.arange(num_steps + 5)
    return (distance >= 0) & (distance <= 5)


def test_skew_shifts_each_row_by_one_more_and_unskew_undoes_it() -> None:
    scores = torch.arange(1, 7).view(2, 3).float()
    assert skew(scores).tolist() == [[1, 2, 3, 0], [0, 4, 5, 6]]
    assert torch.equal(unskew(skew(scores)), scores)


def test_without_positions_the_attention_is_scaled_dot_product_attention() -> None:
    layer = attention("none")
    inputs, age = torch.randn(2, 17, 8).double(), torch.full((2, 12), 5)
    query = layer.query(inputs[:, 5:]).unflatten(-1, (2, 4)).transpose(1, 2)
    key, value = layer.keys_values(inputs)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visible(12)
    )
    torch.testing.assert_close(
        layer(inputs, age), layer.output(expected.transpose(1, 2).flatten(2))
    )


def test_persistent_pairs_are_keys_that_every_step_sees() -> None:
    layer = attention("none", num_persistent=3)
    inputs, age = torch.randn(2, 17, 8).double(), torch.full((2, 12), 5)
    query = layer.query(inputs[:, 5:]).unflatten(-1, (2, 4)).transpose(1, 2)
    key, value = (
        torch.cat([from_inputs, persistent.expand(2, -1, -1, -1)], dim=2)
        for from_inputs, persistent in zip(layer.keys_values(inputs), layer.persistent, strict=True)
    )
    mask = torch.nn.functional.pad(visible(12), (0, 3), value=True)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(
        layer(inputs, age), layer.output(expected.transpose(1, 2).flatten(2))
    )


def test_a_memory_readout_is_mapped_separately() -> None:
    torch.manual_seed(0)
    config = TorsoConfig(width=8, num_heads=2, window_length=5, segment_length=5, position="rotary")
    layer = WindowAttention(config, reads_memory=True).double()
    inputs, age = torch.randn(2, 17, 8).double(), torch.full((2, 12), 5)
    readout = torch.randn(2, 12, 8).double()
    alone = layer(inputs, age, torch.zeros_like(readout))
    mapped = readout @ layer.output.weight[:, 8:].mT
    torch.testing.assert_close(layer(inputs, age, readout), alone + mapped)
    torch.testing.assert_close(layer.map_readout(readout), mapped)


@pytest.mark.parametrize("learned", [False, True])
def test_relative_logits_are_those_of_transformer_xl(learned: bool) -> None:
    torch.manual_seed(0)
    positions = RelativePositions(8, num_heads=2, window_length=3, learned=learned).double()
    for bias in (positions.content_bias, positions.position_bias):
        torch.nn.init.normal_(bias)
    query, key = torch.randn(2, 2, 4).double(), torch.randn(2, 5, 4).double()
    _, logits = positions.block(query / 2, key, torch.zeros(1, 2, 4).double())
    by_distance = positions.position_embeddings().flip(1)
    for head in range(2):
        for i in range(2):
            for j in range(i, i + 4):
                content = (query[head, i] + positions.content_bias[head]) @ key[head, j]
                position = by_distance[head, i + 3 - j]
                place = (query[head, i] + positions.position_bias[head]) @ position
                torch.testing.assert_close(logits[head, i, j], (content + place) / 2)


def test_rotary_logits_rotate_pairs_of_features_by_the_distance() -> None:
    positions = RotaryPositions(window_length=3).double()
    query, key = torch.randn(1, 2, 4).double(), torch.randn(1, 5, 4).double()
    _, logits = positions.block(query / 2, key, torch.zeros(1, 2, 4).double())
    as_complex = [torch.complex(x[..., :2], x[..., 2:]) for x in (query[0], key[0])]
    frequency = torch.tensor([1.0, 0.01]).double()
    for i in range(2):
        for j in range(i, i + 4):
            rotation = torch.exp(1j * (i + 3 - j) * frequency)
            expected = (as_complex[0][i] * rotation * as_complex[1][j].conj()).real.sum()
            torch.testing.assert_close(logits[0, i, j], expected / 2)


@pytest.mark.parametrize("position", POSITIONS)
def test_a_trained_torso_runs_with_a_longer_window_where_positions_extend(position: str) -> None:
    torch.manual_seed(0)
    sizes = {"width": 8, "num_layers": 1, "num_heads": 2, "segment_length": 4}
    short, long = (
        build_torso(TorsoConfig(**sizes, window_length=window, position=position)).double()
        for window in (4, 9)
    )
    if position == "learned":
        with pytest.raises(RuntimeError, match="size mismatch"):
            long.load_state_dict(short.state_dict())
        return
    long.load_state_dict(short.state_dict())
    x, calm = torch.randn(2, 9, 8).double(), torch.zeros(2, 9, dtype=torch.bool)
    y, _ = short(x, short.initial_state(2), calm)
    z, _ = long(x, long.initial_state(2), calm)
    torch.testing.assert_close(y[:, :5], z[:, :5])  # both windows hold these steps' past
    assert not torch.allclose(y[:, 5:], z[:, 5:])
