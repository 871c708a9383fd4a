"""The task in CONTRIBUTING.md works as documented."""

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mtxl_rl.envs.tasks.catalog import TaskEntry
from mtxl_rl.envs.wrappers.checked import CheckedVectorEnv

TEXT = (Path(__file__).parents[3] / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_the_task_of_contributing_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    section = TEXT.split("## Adding a task")[1].split("## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    assert len(code.splitlines()) < 60
    module = ModuleType("delayed_copy")
    monkeypatch.setitem(sys.modules, "delayed_copy", module)  # Dataclasses look their module up.
    exec(code, module.__dict__)
    entry = TaskEntry("DelayedCopy", module.DelayedCopyConfig, module.DelayedCopy)
    env = CheckedVectorEnv(entry.task_class(entry.config_class(delay=3), num_envs=4, seed=0))
    observation, _ = env.reset()
    for step in range(9):  # Two episodes and the reset row between them.
        if step in (0, 5):
            symbol = observation
        observation, reward, terminated, _, info = env.step(symbol)
        is_end = step in (3, 8)
        assert terminated.tolist() == [is_end] * 4
        assert reward.tolist() == [float(is_end)] * 4
        if is_end:
            assert info["success"].tolist() == [1.0] * 4
    assert set(np.unique(symbol)) <= {0, 1, 2, 3}
    env.close()
