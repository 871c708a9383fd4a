"""The loss of predicting the observation back."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from mtxl_rl.agents.decoders import ChoiceDecoder, MovementDecoder, ObservationDecoder
from mtxl_rl.agents.world import World
from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.training.run import Run

SPACES = {
    "pixels": spaces.Box(0, 255, (30, 20, 3), np.uint8),
    "channels first": spaces.Box(0, 255, (3, 64, 64), np.uint8),
    "numbers": spaces.Box(-1, 1, (2, 3), np.float32),
    "bits": spaces.MultiBinary(4),
    "choice": spaces.Discrete(5, start=2),
    "choices": spaces.MultiDiscrete([2, 7, 3], start=[0, 1, 5]),
}


@pytest.mark.parametrize("name", SPACES)
def test_what_is_seen_can_be_learned_back_whatever_the_leading_axes(name: str) -> None:
    torch.manual_seed(0)
    space = spaces.Dict({"leaf": SPACES[name]})
    space.seed(0)
    samples = [np.asarray(space.sample()["leaf"]) for _ in range(3)]
    if len(SPACES[name].shape or ()) == 3:  # noise can be learned by nobody: black, white, black
        samples = [np.full_like(sample, 255 * (i % 2)) for i, sample in enumerate(samples)]
    observation = {"leaf": torch.as_tensor(np.stack(samples))}
    decoder, features = ObservationDecoder(space, 16), torch.randn(3, 16)
    loss = decoder.losses(features, observation)["leaf"]
    assert loss.shape == (3,)
    twice = {"leaf": observation["leaf"].expand(2, *observation["leaf"].shape)}
    both = decoder.losses(features.expand(2, 3, 16), twice)["leaf"]
    torch.testing.assert_close(both, loss.expand(2, 3))
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for _ in range(60):
        now = decoder.losses(features, observation)["leaf"].mean()
        optimizer.zero_grad()
        now.backward()
        optimizer.step()
    assert now.item() < 0.5 * loss.mean().item()


def test_the_loss_of_choices_is_the_mean_cross_entropy() -> None:
    decoder = ChoiceDecoder([2, 4], 3, start=[0, 1])
    torch.nn.init.zeros_(decoder.output.weight)
    torch.nn.init.zeros_(decoder.output.bias)
    loss = decoder(torch.randn(1, 3), torch.tensor([[1, 4]]))
    assert loss.item() == pytest.approx((math.log(2) + math.log(4)) / 2)


def test_numbers_are_predicted_in_units_of_their_deviation() -> None:
    """Predicting the mean has a loss of 1, whatever the numbers' size."""
    decoder = ObservationDecoder(spaces.Dict({"leaf": spaces.Box(-1e4, 1e4, (3,))}), 4)
    torch.manual_seed(0)
    numbers = torch.tensor([1.0, 100.0, 1e4]) * torch.randn(64, 50, 3) + 7
    valid = torch.rand(64, 50) < 0.5
    numbers[~valid] = 1e6
    decoder.update_statistics({"leaf": numbers}, valid, World())
    for layer in decoder.vectors["leaf"].layers:
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    loss = decoder.losses(torch.randn(64, 50, 4), {"leaf": numbers})["leaf"]
    assert loss[valid].mean().item() == pytest.approx(1, rel=1e-4)


def test_exact_movements_have_no_loss_and_none_has_the_numbers_mean_square() -> None:
    """A turn to the left by 90 degrees: what was ahead is to the right."""
    decoder = MovementDecoder("way", "direction")
    turned = torch.tensor([[0.3, -0.4, torch.pi / 2]])
    observation = {
        "way": torch.tensor([[0.3, -0.4]]),
        "direction": torch.tensor([[1.0, 0.0]]),
    }
    losses = decoder.losses(turned, observation)
    assert losses.keys() == {"way", "direction"}
    assert all(loss.item() == pytest.approx(0, abs=1e-6) for loss in losses.values())
    still = decoder.losses(torch.zeros(1, 3), observation)
    assert still["way"].item() == pytest.approx((0.3**2 + 0.4**2) / 2)
    assert still["direction"].item() == pytest.approx(1)
    valid = torch.ones(1, 1, dtype=torch.bool)
    ways = {key: torch.cat([leaf, -leaf])[None] for key, leaf in observation.items()}
    decoder.update_statistics(ways, valid.expand(1, 2), World())
    assert decoder.losses(torch.zeros(1, 3), observation)["way"].item() == pytest.approx(1)


@pytest.mark.training
def test_it_trains_with_ppo_and_its_gradient_reaches_the_encoder_through_the_torso() -> None:
    config = compose_config([
        "env=TMaze", "model=tiny", "num_envs=4", "device=cpu", "auxiliary.predict=[obs]",
        "torso.window_length=8", "torso.segment_length=8", "ppo.rollout_length=32",
        "ppo.bptt_segments=4", "total_steps=128",
    ])  # fmt: skip
    env = make_vector_env(config.env, num_envs=4, seed=0)
    run = Run(config, env)
    run.collector.reset(seed=None)
    assert run.iterate()["losses/prediction_obs"] > 0
    rollout = run.collector.rollout
    spans = rollout.spans(torch.arange(4), rollout.value, rollout.value)
    outputs, _ = run.policy(spans.inputs, spans.memory)
    run.policy.zero_grad()
    outputs.prediction_losses["obs"][:, -1].sum().backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in run.policy.encoder.parameters()
    )
    with torch.no_grad():
        assert not run.policy(spans.inputs, spans.memory)[0].prediction_losses
    env.close()


def test_without_a_leaf_to_predict_there_is_no_decoder() -> None:
    config = compose_config(["env=TMaze"])
    assert config.auxiliary.predict == []
    with pytest.raises(ValueError, match=r"auxiliary.coef=-1.* must be 0 or more"):
        compose_config(["env=TMaze", "auxiliary.coef=-1"])
