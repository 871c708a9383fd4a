"""The average of a policy's weights."""

import pytest
import torch

from mtxl_rl.agents.weight_average import WeightAverage

CPU = torch.device("cpu")


def weights(value: float) -> dict[str, torch.Tensor]:
    weight = torch.tensor([value, -value], dtype=torch.float32)
    return {"weight": weight, "count": torch.tensor(int(value))}


def test_the_first_iterations_are_averaged_evenly_and_later_ones_exponentially() -> None:
    average = WeightAverage(3)
    for value, expected in ((1.0, 1.0), (2.0, 1.5), (3.0, 2.0), (8.0, 4.0), (1.0, 3.0)):
        average.update(weights(value))
        assert average.weights["weight"].tolist() == pytest.approx([expected, -expected])
    assert average.weights["count"] == 1  # Counts are not averaged.


def test_the_average_shares_no_memory_with_the_policy() -> None:
    average, current = WeightAverage(4), weights(1)
    average.update(current)
    current["weight"].add_(1)
    assert average.weights["weight"].tolist() == [1, -1]


def test_a_restored_average_continues() -> None:
    average, restored = WeightAverage(8), WeightAverage(8)
    for value in (1, 2):
        average.update(weights(value))
    restored.load_state_dict(average.state_dict(), device=CPU)
    for each in (average, restored):
        each.update(weights(6))
    assert restored.weights["weight"].tolist() == average.weights["weight"].tolist() == [3, -3]
