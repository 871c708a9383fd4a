"""Shares of past writes in a readout: exact, and visible in the picture."""

import numpy as np
import pytest
import torch

from mtxl_rl.evaluation.retrieval import retrieval_shares, retrieval_weights, visible_writes
from mtxl_rl.torso import MemoryTransformer, TorsoConfig


def is_first_at(*steps: int, num_steps: int = 23) -> torch.Tensor:
    is_first = torch.zeros(1, num_steps, dtype=torch.bool)
    is_first[0, list(steps)] = True
    return is_first


@pytest.mark.parametrize("read", ["sequential", "parallel"])
@pytest.mark.parametrize("decay", ["none", "coupled", "free"])
def test_the_weighted_values_are_what_the_memory_returns(decay: str, read: str) -> None:
    torch.manual_seed(0)
    config = TorsoConfig(
        width=12, num_heads=3, num_layers=2, window_length=5, segment_length=3, decay=decay,
        read=read,
    )  # fmt: skip
    torso = MemoryTransformer(config).double()
    x, is_first = torch.randn(1, 23, 12).double(), is_first_at(7, 17)
    layers = torso.inspect(x, torso.initial_state(1), is_first).diagnostics
    for n, diagnostics in enumerate(layers):
        weights = retrieval_weights(diagnostics, is_first[0], segment_length=3)
        readout = torch.einsum("htw,whe->the", weights, diagnostics["memory/value"][0])
        for step in (0, 2, 6, 7, 12, 16, 22):
            state = torso(x[:, : step + 1], torso.initial_state(1), is_first[:, : step + 1])[1]
            start = max(t for t in (0, 7, 17) if t <= step)
            if (step + 1 - start) % 3 == 0:  # The state has already the write of this step.
                before = torso.initial_state(1)
                state = torso(x[:, :step], before, is_first[:, :step])[1] if step else before
            memory = state.long_term[0, n]
            if step == start:
                memory = torch.zeros_like(memory)
            query = diagnostics["memory/query"][0, step]
            expected = torch.einsum("hef,he->hf", memory, query)
            torch.testing.assert_close(readout[step], expected, rtol=1e-9, atol=1e-12)


def test_shares_sum_to_one_where_the_memory_is_not_empty() -> None:
    torch.manual_seed(0)
    torso = MemoryTransformer(
        TorsoConfig(width=8, num_heads=2, window_length=4, segment_length=4)
    ).double()
    x, is_first = torch.randn(1, 23, 8).double(), is_first_at(9)
    layer = torso.inspect(x, torso.initial_state(1), is_first).diagnostics[0]
    shares = retrieval_shares(layer, is_first[0], segment_length=4)
    is_empty = torch.tensor([t < 4 or 9 <= t < 13 for t in range(23)])
    torch.testing.assert_close(shares.sum(1), (~is_empty).double())
    assert (shares[13:, :9] == 0).all(), "a read returns a step of an earlier episode"


def test_a_stored_value_is_found_and_an_overwritten_one_is_not() -> None:
    """Keys and queries by hand: three steps write, the last one under the key of the first."""
    keys = torch.eye(2)[[0, 1, 0, 1]]
    diagnostics = {
        "memory/key": keys[None, :, None],
        "memory/value": torch.randn(1, 4, 1, 2, generator=torch.Generator().manual_seed(0)),
        "memory/query": keys[[0, 0, 0, 0]][None, :, None],
        "memory/strength": torch.tensor([1.0, 1.0, 1.0, 0.0])[None, :, None],
        "memory/retention": torch.ones(1, 4, 1),
    }
    is_first = torch.tensor([True, False, False, False])
    weights = retrieval_weights(diagnostics, is_first, segment_length=1)[0]
    assert weights.tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0]]


def test_a_step_reads_its_episodes_finished_segments() -> None:
    first, end = visible_writes(is_first_at(5, num_steps=10)[0], segment_length=3)
    assert first.tolist() == [0] * 5 + [5] * 5
    assert end.tolist() == [0, 0, 0, 3, 3, 5, 5, 5, 8, 8]
    assert np.all(end.numpy() >= first.numpy())
