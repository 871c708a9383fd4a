"""The torso in TorchRL: stepping and spans agree, resets included, and its PPO trains it."""

import warnings

import pytest
import torch
from torch import nn

pytest.importorskip("torchrl", reason="torchrl is not installed")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from tensordict import TensorDict
    from tensordict.nn import TensorDictModule, TensorDictSequential
    from torchrl.envs import GymEnv, InitTracker, TransformedEnv
    from torchrl.modules import ProbabilisticActor, set_recurrent_mode
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

from mtxl_rl import TorsoConfig
from mtxl_rl.integrations.torchrl import TorsoModule

KINDS = [
    TorsoConfig(width=16, num_heads=2, window_length=4, segment_length=4, num_persistent=2),
    TorsoConfig(
        width=16, num_heads=2, window_length=4, segment_length=4, num_persistent=2,
        long_term="slots",
    ),
    TorsoConfig(kind="gru", width=16),
]  # fmt: skip


def embodied(torso: TorsoConfig) -> tuple[TransformedEnv, ProbabilisticActor, TorsoModule]:
    """CartPole, and a policy of encoder, torso and head."""
    torch.manual_seed(0)
    module = TorsoModule(torso, in_key="encoded", out_key="features")
    env = TransformedEnv(GymEnv("CartPole-v1", categorical_action_encoding=True), InitTracker())
    env = env.append_transform(module.make_tensordict_primer())
    env.set_seed(0)
    logits = TensorDictSequential(
        TensorDictModule(nn.Linear(4, 16), ["observation"], ["encoded"]),
        module,
        TensorDictModule(nn.Linear(16, 2), ["features"], ["logits"]),
    )
    policy = ProbabilisticActor(
        logits,
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
    )
    return env, policy, module


@pytest.mark.parametrize("torso", KINDS, ids=["delta", "slots", "gru"])
@pytest.mark.training
def test_spans_equal_steps_though_episodes_start_inside(torso: TorsoConfig) -> None:
    env, policy, _ = embodied(torso)
    with torch.no_grad():
        rollout = env.rollout(120, policy, break_when_any_done=False)
        assert rollout["is_init"][1:].sum() >= 2  # CartPole's random episodes last 20 steps
        with set_recurrent_mode(True):
            again = policy[0](rollout.clone())
        late = rollout[25:].clone()  # a span that begins inside an episode, from its stored memory
        with set_recurrent_mode(True):
            from_memory = policy[0](late.clone())
            late["memory"].zero_()
            from_nothing = policy[0](late)
    torch.testing.assert_close(again["logits"], rollout["logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(from_memory["logits"], rollout["logits"][25:], atol=1e-5, rtol=1e-5)
    assert (from_nothing["logits"][0] - rollout["logits"][25]).abs().max() > 1e-6


def test_only_memories_where_a_span_or_an_episode_starts_are_read() -> None:
    env, policy, module = embodied(KINDS[0])
    with torch.no_grad():
        rollout = env.rollout(60, policy, break_when_any_done=False)
    assert rollout["memory"].shape == (60, module.memory_size)
    starts = rollout["is_init"][:, 0]
    assert starts.sum() > 1
    assert not rollout["memory"][starts].any()
    changed = rollout.clone()
    changed["memory"][~starts] = torch.nan
    with torch.no_grad(), set_recurrent_mode(True):
        assert policy[0](changed)["logits"].isfinite().all()


def test_batches_of_any_axes() -> None:
    module = TorsoModule(KINDS[0])
    steps = TensorDict(
        {
            "features": torch.randn(2, 3, 5, 16),
            "is_init": torch.zeros(2, 3, 5, 1, dtype=torch.bool),
        },
        batch_size=(2, 3, 5),
    )
    steps["is_init"][1, 2, 3] = True
    with set_recurrent_mode(True):
        spans = module(steps.clone())["features"]
    step, outputs = None, []
    for t in range(5):
        now = steps[:, :, t].clone()
        if step is not None:
            now["memory"] = step["next", "memory"]
        step = module(now)
        outputs.append(step["features"])
    torch.testing.assert_close(torch.stack(outputs, 2), spans, atol=1e-6, rtol=1e-5)


def test_what_is_missing_is_named() -> None:
    module = TorsoModule(KINDS[0])
    with pytest.raises(ValueError, match="InitTracker"):
        module(TensorDict({"features": torch.zeros(2, 16)}, batch_size=(2,)))
    lone = {"features": torch.zeros(16), "is_init": torch.zeros(1, dtype=torch.bool)}
    with set_recurrent_mode(True), pytest.raises(ValueError, match="last one is time"):
        module(TensorDict(lone, batch_size=()))


@pytest.mark.parametrize("torso", KINDS, ids=["delta", "slots", "gru"])
@pytest.mark.training
def test_advantages_bootstrap_from_values_of_the_whole_episode(torso: TorsoConfig) -> None:
    env, policy, _ = embodied(torso)
    value = TensorDictSequential(
        *policy[0][:2], TensorDictModule(nn.Linear(16, 1), ["features"], ["state_value"])
    )
    with torch.no_grad():
        rollout = env.rollout(128, policy, break_when_any_done=False)
        after = rollout["next"].clone()  # one step each, from the memory stored before it
        after["is_init"] = torch.zeros_like(after["is_init"])
        expected = value(after)["state_value"]
        with set_recurrent_mode(True):
            gae = GAE(gamma=0.99, lmbda=0.95, value_network=value, deactivate_vmap=True)
            values = gae(rollout[None].clone())[0]
            few = gae(rollout[None, :5].clone())[0]  # of one episode, from its start
    is_end = rollout["next", "done"]
    assert is_end.sum() >= 2
    torch.testing.assert_close(values["next", "state_value"], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(few["next", "state_value"], expected[:5], atol=1e-5, rtol=1e-5)
    inside = ~is_end[:-1]
    torch.testing.assert_close(
        values["next", "state_value"][:-1][inside], values["state_value"][1:][inside],
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


@pytest.mark.training
@pytest.mark.parametrize("torso", KINDS, ids=["delta", "slots", "gru"])
def test_its_ppo_gives_every_weight_a_finite_gradient(torso: TorsoConfig) -> None:
    env, policy, module = embodied(torso)
    value = TensorDictSequential(
        *policy[0][:2], TensorDictModule(nn.Linear(16, 1), ["features"], ["state_value"])
    )
    with torch.no_grad():
        rollout = env.rollout(64, policy, break_when_any_done=False)[None]
    with set_recurrent_mode(True):
        with pytest.raises(ValueError, match="deactivate_vmap=True"):
            GAE(gamma=0.99, lmbda=0.95, value_network=value)(rollout.clone())
        GAE(gamma=0.99, lmbda=0.95, value_network=value, deactivate_vmap=True)(rollout)
        losses = ClipPPOLoss(policy, value)(rollout)
        sum(losses[key] for key in ("loss_objective", "loss_critic", "loss_entropy")).backward()
    assert losses["kl_approx"].abs() < 1e-6  # acting and learning agree
    for name, weight in module.torso.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
    assert sum(weight.grad.abs().sum() for weight in module.torso.parameters()) > 0
