"""The torso in rsl_rl's PPO: acting and learning agree; a done forgets."""

import warnings
from typing import Any

import pytest
import torch

pytest.importorskip("rsl_rl", reason="rsl-rl-lib is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from rsl_rl.env import VecEnv
    from rsl_rl.runners import OnPolicyRunner
    from tensordict import TensorDict

from mtxl_rl import TorsoConfig
from mtxl_rl.integrations.rsl_rl import TorsoMemory, TorsoModel

TORSO = {
    "width": 16, "num_heads": 2, "window_length": 4, "segment_length": 4, "num_persistent": 2,
    "sublayers": {"activation": "gelu"},
}  # fmt: skip


class Recall(VecEnv):
    """Shows a number at an episode's first step and asks for it at the last, in torch.

    Row b's episodes have 3 + b % 5 steps, so that rows end at different times.
    """

    num_actions = 1
    max_episode_length = 7
    device = "cpu"
    cfg: dict = {}  # noqa: RUF012

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.length = 3 + torch.arange(num_envs) % 5
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.long)
        self.number = torch.rand(num_envs) * 2 - 1

    def get_observations(self) -> TensorDict:
        """The number at first steps, and whether the step is the last."""
        step = self.episode_length_buf
        shown = torch.where(step == 0, self.number, 0.0)
        is_question = (step == self.length - 1).float()
        policy = torch.stack([shown, is_question], dim=1)
        return TensorDict({"policy": policy}, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict]:
        """Reward the last step's action."""
        dones = self.episode_length_buf == self.length - 1
        rewards = torch.where(dones, -(actions[:, 0] - self.number).square(), 0.0)
        self.episode_length_buf = torch.where(dones, 0, self.episode_length_buf + 1)
        self.number = torch.where(dones, torch.rand(self.num_envs) * 2 - 1, self.number)
        return self.get_observations(), rewards, dones, {}


def runner_of(num_steps: int = 11, **model: Any) -> OnPolicyRunner:  # noqa: ANN401
    torch.manual_seed(0)
    shared = {
        "class_name": "mtxl_rl.integrations.rsl_rl:TorsoModel", "hidden_dims": [16],
        "activation": "elu", "torso": TORSO,
    } | model  # fmt: skip
    distribution = {"class_name": "GaussianDistribution", "init_std": 1.0}
    config = {
        "num_steps_per_env": num_steps,
        "save_interval": 100,
        "obs_groups": {"actor": ["policy"], "critic": ["policy"]},
        "actor": shared | {"distribution_cfg": distribution},
        "critic": dict(shared),
        "algorithm": {"class_name": "PPO", "num_learning_epochs": 1, "num_mini_batches": 2},
    }
    return OnPolicyRunner(Recall(8), config)


def test_learning_computes_what_acting_did() -> None:
    algorithm = (runner := runner_of()).alg
    env = runner.env
    for _ in range(2):  # The second rollout starts inside episodes, with memories that are not 0.
        with torch.inference_mode():
            observation = env.get_observations()
            for _ in range(11):
                observation, *outcome = env.step(algorithm.act(observation))
                algorithm.process_env_step(observation, *outcome)
            algorithm.compute_returns(observation)
        storage = algorithm.storage
        assert storage.dones.sum() > 8
        for batch in storage.recurrent_mini_batch_generator(2, 1):
            memories = batch.hidden_states
            algorithm.actor(batch.observations, masks=batch.masks, hidden_state=memories[0],
                            stochastic_output=True)  # fmt: skip
            log_prob = algorithm.actor.get_output_log_prob(batch.actions)
            value = algorithm.critic(
                batch.observations, masks=batch.masks, hidden_state=memories[1]
            )
            torch.testing.assert_close(value, batch.values, atol=1e-5, rtol=0)
            expected = batch.old_actions_log_prob[..., 0]
            torch.testing.assert_close(log_prob, expected, atol=1e-5, rtol=0)
        storage.clear()
    assert any(memory.any() for memory in storage.saved_hidden_state_a[0][0, 0])


def test_a_done_forgets() -> None:
    model = runner_of().alg.critic
    observation = TensorDict({"policy": torch.ones(3, 2)}, batch_size=[3])
    with torch.no_grad():
        first = model(observation)
        second = model(observation)
        assert not torch.isclose(first, second).any()
        model.reset(torch.tensor([0, 1, 0]))
        third = model(observation)
    torch.testing.assert_close(third[1], first[1])
    assert not torch.isclose(third[[0, 2]], first[[0, 2]]).any()


@pytest.mark.training
def test_a_run_updates_its_weights_and_is_loaded(tmp_path: Any) -> None:  # noqa: ANN401
    runner = runner_of()
    before = {name: weight.clone() for name, weight in runner.alg.actor.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of rsl_rl and its logger.
        runner.learn(2)
    after = runner.alg.actor.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {"rnn.encoder.weight", "mlp.0.weight"} <= moved
    assert any(name.startswith("rnn.torso.torso.layers.0.memory") for name in moved)
    runner.save(str(tmp_path / "model.pt"))
    other = runner_of()
    other.load(str(tmp_path / "model.pt"))
    for name, weight in other.alg.actor.state_dict().items():
        assert torch.equal(weight, after[name])


def test_wrong_options_and_exports_are_refused() -> None:
    with pytest.raises(ValueError, match="rnn_hidden_dim was given, but TorsoModel has no LSTM"):
        runner_of(rnn_hidden_dim=32)
    model = runner_of(torso=TorsoConfig(width=16, window_length=4, segment_length=4)).alg.actor
    assert isinstance(model, TorsoModel)
    for export in (model.as_jit, model.as_onnx):
        with pytest.raises(NotImplementedError, match="no TorchScript or ONNX export"):
            export()
    memory = TorsoMemory(2, TorsoConfig(width=16, window_length=4, segment_length=4))
    with pytest.raises(ValueError, match="without hidden_state"):
        memory(torch.zeros(4, 1, 2), torch.ones(4, 1, dtype=torch.bool))
