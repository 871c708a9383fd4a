"""The long-term memory in docs/tutorials works as documented."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mtxl_rl.torso import TorsoConfig, build_torso
from mtxl_rl.torso.long_term import LONG_TERM
from mtxl_rl.torso.torso_config import DECAYS

PAGE = Path(__file__).parents[2] / "docs/tutorials/long_term_memory.md"


@pytest.mark.parametrize("read", ["parallel", "sequential"])
def test_the_memory_of_the_tutorial_acts_as_it_learns(
    read: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PAGE.read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(code.splitlines()) < 60
    names: dict[str, Any] = {}
    exec(code, names)
    monkeypatch.setitem(LONG_TERM, "average", names["AverageMemory"])
    monkeypatch.setitem(DECAYS, "average", ("none",))
    torch.manual_seed(0)
    config = TorsoConfig(width=8, num_heads=2, window_length=6, segment_length=4, read=read,
                         long_term="average")  # fmt: skip
    torso = build_torso(config).double()
    x, is_first = torch.randn(3, 30, 8).double(), torch.rand(3, 30) < 0.05
    y, state = torso(x, torso.initial_state(3), is_first)
    head, middle = torso(x[:, :13], torso.initial_state(3), is_first[:, :13])
    tail, again = torso(x[:, 13:], middle, is_first[:, 13:])
    torch.testing.assert_close(torch.cat([head, tail], 1), y)
    cache = torso.prefill(middle)
    steps = [torso.decode_step(x[:, t], cache, is_first[:, t]) for t in range(13, 30)]
    torch.testing.assert_close(torch.stack(steps, 1), tail)
    for after in (again, cache.state()):
        for actual, expected in zip(after, state, strict=True):
            torch.testing.assert_close(actual, expected)
    assert state.long_term.abs().max() > 0
