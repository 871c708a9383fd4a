"""The Python examples in docstrings run, with the names that a reader has."""

import re
import textwrap
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import mtxl_rl
from mtxl_rl import Agent, ExportedPolicy, TorsoConfig
from mtxl_rl.runtime import exported_policy

ROOT = Path(__file__).parents[1]
SMALL = {
    "model": "tiny", "num_envs": 4, "ppo.rollout_length": 16, "ppo.bptt_segments": 2,
    "torso.window_length": 4, "torso.segment_length": 4, "device": "cpu",
}  # fmt: skip
Prepare = Callable[[pytest.MonkeyPatch], dict[str, Any]]


def examples() -> dict[str, list[str]]:
    """The Python blocks of each module's docstrings."""
    fence = re.compile(r"^ *```python\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)
    blocks = {
        path.relative_to(ROOT).as_posix(): fence.findall(path.read_text(encoding="utf-8"))
        for path in (ROOT / "mtxl_rl").rglob("*.py")
    }
    return {path: code for path, code in blocks.items() if code}


def short_training(env: str, options: dict[str, Any], **top_level: Any) -> object:  # noqa: ANN401
    """Train for as many steps as one episode of all environments has, not for the example's."""
    return mtxl_rl.train(env, {**options, **SMALL}, **{**top_level, "total_steps": 128})


def evaluate_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `Agent.evaluate` play 4 episodes, of any number."""
    evaluate = Agent.evaluate
    monkeypatch.setattr(Agent, "evaluate", lambda agent, **_: evaluate(agent, episodes=4))


def prepare_train(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    evaluate_few(monkeypatch)
    return {"mtxl_rl": SimpleNamespace(train=short_training)}


def prepare_agent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    evaluate_few(monkeypatch)
    options = {**SMALL, "env.corridor_length": 9}
    run = mtxl_rl.train("TMaze", options, total_steps=64, run_dir="runs/first")
    observation = run.agent.observation_space.sample()
    return {"Agent": Agent, "observation": observation, "reward": 0.0}


def prepare_exported_policy(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A file of which only the loading, which needs a compiler, is replaced."""
    inputs = [("is_first", [1], "bool"), ("reward", [1], "float32")]
    about = {"inputs": [*inputs, ("observation/obs", [1, 3], "float32")]}
    outputs = [torch.zeros(1, dtype=torch.long), torch.zeros(1), torch.zeros(1, 2)]
    monkeypatch.setattr(exported_policy, "_load_package", lambda _: (about, lambda _: outputs))
    Path("policy.pt2").touch()
    return {"ExportedPolicy": ExportedPolicy, "observation": np.zeros(3), "reward": 1.0}


def prepare_sb3(_: pytest.MonkeyPatch) -> dict[str, Any]:
    recurrent_ppo = pytest.importorskip("sb3_contrib").RecurrentPPO
    make_vec_env = import_module("stable_baselines3.common.env_util").make_vec_env
    policy = import_module("mtxl_rl.integrations.sb3").MlpTorsoPolicy
    return {
        "RecurrentPPO": recurrent_ppo, "MlpTorsoPolicy": policy, "TorsoConfig": TorsoConfig,
        "envs": make_vec_env("CartPole-v1", n_envs=2),
    }  # fmt: skip


def prepare_rsl_rl(_: pytest.MonkeyPatch) -> dict[str, Any]:
    pytest.importorskip("rsl_rl")
    return {}


def prepare_rllib(_: pytest.MonkeyPatch) -> dict[str, Any]:
    pytest.importorskip("ray.rllib", reason="ray[rllib] is not installed")
    ppo = import_module("ray.rllib.algorithms.ppo")
    rl_module = import_module("ray.rllib.core.rl_module.rl_module")
    rllib = import_module("mtxl_rl.integrations.rllib")
    return {
        "RLModuleSpec": rl_module.RLModuleSpec, "PPOConfig": ppo.PPOConfig,
        "TorsoCatalog": rllib.TorsoCatalog, "TorsoConfig": TorsoConfig,
    }  # fmt: skip


PREPARE: dict[str, Prepare] = {
    "mtxl_rl/train.py": prepare_train,
    "mtxl_rl/agent.py": prepare_agent,
    "mtxl_rl/runtime/exported_policy.py": prepare_exported_policy,
    "mtxl_rl/integrations/sb3.py": prepare_sb3,
    "mtxl_rl/integrations/rsl_rl.py": prepare_rsl_rl,
    "mtxl_rl/integrations/rllib.py": prepare_rllib,
}
"""For each module with examples, the names that they use."""


def test_every_example_is_executed() -> None:
    assert set(examples()) == set(PREPARE)


@pytest.mark.parametrize("path", PREPARE)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.training
def test_an_example_runs(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for block in examples()[path]:
        names = PREPARE[path](monkeypatch)
        exec(compile(textwrap.dedent(block), path, "exec"), names)
        if "model" in names:  # rsl_rl's, in which a class and the torso's options are named.
            module, _, name = names["model"]["class_name"].partition(":")
            assert hasattr(import_module(module), name)
            TorsoConfig(**names["model"]["torso"])
