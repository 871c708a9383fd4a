"""Advantages against per-episode loops, on random layouts of NEXT_STEP autoreset."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtxl_rl.agents.returns import gae


def by_episode(reward: Tensor, kind: list[str], value: Tensor, gamma: float, lam: float) -> Tensor:
    """One environment's advantages, episode by episode."""
    advantage = torch.zeros(len(kind)).double()
    begin = 0
    while begin < len(kind):
        end = begin
        while end < len(kind) - 1 and kind[end] == "step":
            end += 1
        if kind[begin] == "final":
            begin += 1
            continue
        running = 0.0
        for t in range(end, begin - 1, -1):
            bootstrap = 0.0 if kind[t] == "terminated" else float(value[t + 1])
            delta = float(reward[t]) + gamma * bootstrap - float(value[t])
            running = delta + gamma * lam * running * (t != end)
            advantage[t] = running
        begin = end + 1
    return advantage


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.floats(0, 1), st.floats(0, 1))
def test_gae_equals_each_episode_alone(seed: int, steps: int, gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(steps, generator=generator)
    kind: list[str] = []
    for t in range(steps):
        if kind and kind[-1] in ("terminated", "truncated"):
            kind.append("final")
        else:
            kind.append(
                "terminated" if draw[t] < 0.15 else "truncated" if draw[t] < 0.3 else "step"
            )
    reward = torch.randn(steps, generator=generator).double()
    value = torch.randn(steps + 1, generator=generator).double()
    advantage = gae(
        reward[None],
        torch.tensor([[k == "terminated" for k in kind]]),
        torch.tensor([[k != "final" for k in kind]]),
        value[None, :-1],
        value[-1:],
        gamma=gamma,
        gae_lambda=lam,
    )
    torch.testing.assert_close(advantage[0], by_episode(reward, kind, value, gamma, lam))


def test_lambda_zero_is_the_td_residual_and_one_the_return_minus_the_value() -> None:
    reward = torch.tensor([[1.0, 2.0, 3.0]])
    value = torch.tensor([[0.5, 0.25, 0.125]])
    ends = torch.tensor([[False, False, True]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    nowhere = torch.tensor([100.0])
    residual = gae(reward, ends, valid, value, nowhere, gamma=0.5, gae_lambda=0.0)
    assert residual.tolist() == [[1 + 0.125 - 0.5, 2 + 0.0625 - 0.25, 3 - 0.125]]
    returns = gae(reward, ends, valid, value, nowhere, gamma=0.5, gae_lambda=1.0)
    assert returns.tolist() == [[1 + 1 + 0.75 - 0.5, 2 + 1.5 - 0.25, 3 - 0.125]]
