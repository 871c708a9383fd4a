"""The torso in RLlib's PPO: rows from stored memories have the outputs of acting; it trains.

RLlib pins an older gymnasium, so the tests run where it was installed by hand.
"""

import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("ray.rllib", reason="ray[rllib] is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import ray
    from ray.rllib.algorithms.ppo import PPO, PPOConfig
    from ray.rllib.core.columns import Columns
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from mtxl_rl import TorsoConfig
from mtxl_rl.integrations.rllib import TorsoCatalog

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
TORSO = TorsoConfig(width=16, num_heads=2, window_length=4, segment_length=4, num_persistent=2)


def algorithm_of(**options: object) -> PPO:
    model = {"torso": TORSO, "max_seq_len": 10, "fcnet_hiddens": [16]} | options
    spec = RLModuleSpec(catalog_class=TorsoCatalog, model_config=model)
    return (
        PPOConfig()
        .environment("CartPole-v1")
        .rl_module(rl_module_spec=spec)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=2)
        .learners(num_learners=0)
        .training(train_batch_size_per_learner=128, minibatch_size=64, num_epochs=1)
        .debugging(seed=0)
        .build_algo()
    )


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.parametrize("is_shared", [True, False], ids=["shared", "apart"])
def test_rows_from_stored_memories_equal_acting(*, is_shared: bool) -> None:
    algorithm = algorithm_of(vf_share_layers=is_shared)
    module = algorithm.get_module()
    episode = max(algorithm.env_runner.sample(num_episodes=4, random_actions=False), key=len)
    acted = torch.as_tensor(np.asarray(episode.get_extra_model_outputs(Columns.ACTION_DIST_INPUTS)))
    seen = torch.as_tensor(np.asarray(episode.get_observations()[:-1]), dtype=torch.float32)
    after = episode.get_extra_model_outputs(Columns.STATE_OUT)
    assert len(acted) >= 12

    def learned(begin: int) -> torch.Tensor:
        """Outputs of a row that begins at a step, from the memory stored before it."""
        state = module.get_initial_state() if begin == 0 else _at(after, begin - 1)
        state = _map(lambda leaf: torch.as_tensor(leaf)[None], state)
        padded = torch.cat([seen[begin : begin + 10], torch.zeros(3, 4)])[None]
        with torch.no_grad():
            outputs = module.forward_train({Columns.OBS: padded, Columns.STATE_IN: state})
        return outputs[Columns.ACTION_DIST_INPUTS][0]

    for begin in (0, 5):
        expected = acted[begin : begin + 10]
        torch.testing.assert_close(learned(begin)[: len(expected)], expected, atol=1e-5, rtol=0)
    algorithm.stop()


def test_it_trains() -> None:
    algorithm = algorithm_of(vf_share_layers=True)
    before = {name: weight.clone() for name, weight in algorithm.get_module().named_parameters()}
    metrics = algorithm.train()["learners"]["default_policy"]
    assert np.isfinite(float(metrics["total_loss"]))
    moved = dict(algorithm.get_module().named_parameters())
    assert any("torso" in name and (moved[name] != before[name]).any() for name in before)
    algorithm.stop()


def test_the_example_of_the_documentation_trains() -> None:
    page = (ROOT / "docs/integrations.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```py\n(from ray\.rllib.*?)```", page, flags=re.DOTALL)
    # The environments in this process: with one CPU, those in workers would wait for another.
    one_process = "config.env_runners(num_env_runners=0).training("
    assert "config.training(" in block
    block = block.replace("config.training(", one_process)
    names: dict[str, object] = {}
    exec(compile(block, "docs/integrations.md", "exec"), names)
    algorithm = names["algorithm"]
    assert isinstance(algorithm, PPO)
    algorithm.stop()


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="must be a TorsoConfig"):
        algorithm_of(torso=None)
    with pytest.raises(ValueError, match="use_lstm=True was given"):
        algorithm_of(use_lstm=True)


def _map(change: object, tree: object) -> object:
    if isinstance(tree, dict):
        return {key: _map(change, leaf) for key, leaf in tree.items()}
    return change(tree)


def _at(tree: object, step: int) -> object:
    return _map(lambda leaf: np.asarray(leaf)[step], tree)
