import pytest
import torch

from mtxl_rl.torso.attention import WindowAttention, skew
from mtxl_rl.torso.long_term import DeltaMemory, delta_rule


@pytest.mark.parametrize("decays", [False, True])
def test_the_chunkwise_delta_rule_equals_the_recursion(decays: bool) -> None:
    torch.manual_seed(0)
    key = torch.nn.functional.normalize(torch.randn(6, 33, 8).double(), dim=-1)
    value, strength = torch.randn(6, 33, 5).double(), torch.rand(6, 33).double()
    log_decay = -torch.rand(6, 33).double() * decays
    start = torch.randn(6, 8, 5).double()
    memory = start
    for t in range(33):
        memory = memory * log_decay[:, t].exp()[:, None, None]
        found = torch.einsum("be,bev->bv", key[:, t], memory)
        change = strength[:, t, None] * (value[:, t] - found)
        memory = memory + key[:, t, :, None] * change[:, None]
    keep, add = delta_rule(key, value, strength, log_decay)
    torch.testing.assert_close(keep @ start + add, memory, rtol=1e-12, atol=1e-12)


def test_a_write_of_full_strength_is_read_back_and_spares_orthogonal_keys() -> None:
    key = torch.eye(4).double()[None, :2]
    value = torch.randn(1, 2, 4).double()
    keep, add = delta_rule(key, value, torch.ones(1, 2).double(), torch.zeros(1, 2).double())
    start = torch.randn(1, 4, 4).double()
    after = keep @ start + add
    torch.testing.assert_close(after[0, :2], value[0])
    torch.testing.assert_close(after[0, 2:], start[0, 2:])


@pytest.mark.parametrize("decay", ["none", "coupled", "free"])
def test_steps_that_are_not_live_write_nothing(decay: str) -> None:
    torch.manual_seed(0)
    memory = DeltaMemory(8, num_heads=2, decay=decay).double()
    steps = torch.randn(3, 1, 6, 8).double()
    start = torch.randn(3, *memory.memory_shape).double()
    live = torch.zeros(3, 1, 6, dtype=torch.bool)
    live[:, :, 4:] = True
    written = memory.write(start, tuple(part[:, 0] for part in memory.encode(steps, live)))
    by_step = start
    for t in (4, 5):
        by_step = memory.write_step(by_step, steps[:, 0, t])
    torch.testing.assert_close(written, by_step, rtol=1e-12, atol=1e-12)


def test_skew_moves_each_row_one_further() -> None:
    scores = torch.arange(1, 7).view(2, 3)
    assert skew(scores.float()).tolist() == [[1, 2, 3, 0], [0, 4, 5, 6]]


def test_without_positions_the_attention_is_scaled_dot_product_attention() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(8, num_heads=2, window_length=5, num_persistent=0).double()
    torch.nn.init.zeros_(attention.position.weight)
    inputs, age = torch.randn(2, 17, 8).double(), torch.full((2, 12), 5)
    query = attention.query(inputs[:, 5:]).unflatten(-1, (2, 4)).transpose(1, 2)
    key, value = attention.keys_values(inputs)
    distance = torch.arange(12)[:, None] + 5 - torch.arange(17)
    mask = (distance >= 0) & (distance <= 5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    expected = attention.output(expected.transpose(1, 2).flatten(2))
    torch.testing.assert_close(attention(inputs, age), expected)
