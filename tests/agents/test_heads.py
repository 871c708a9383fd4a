from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from mtxl_rl.agents.decoders import ObservationDecoder
from mtxl_rl.agents.encoders import ObservationEncoder, StepEncoder
from mtxl_rl.agents.heads import CategoricalHead, GaussianHead, ValueHead, build_head
from mtxl_rl.agents.policy import Policy, PolicyConfig
from mtxl_rl.agents.transition import EPISODE_STEP, PolicyInputs
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv
from mtxl_rl.torso import TorsoConfig


def test_a_masked_action_is_never_drawn_and_has_no_entropy() -> None:
    head = CategoricalHead(spaces.Discrete(4), 8)
    mask = torch.tensor([[True, False, True, False]]).expand(500, 4)
    parameters = head(torch.randn(500, 8), mask)
    actions = head.sample(parameters, head.noise(500, torch.Generator().manual_seed(0)))
    assert set(actions.flatten().tolist()) == {0, 2}
    assert (head.entropy(parameters) <= np.log(2) + 1e-6).all()
    assert head.log_prob(parameters, actions).isfinite().all()


def test_draws_follow_the_probabilities() -> None:
    head = CategoricalHead(spaces.MultiDiscrete([2, 3]), 8)
    logs = torch.tensor([0.25, 0.75, 0.1, 0.2, 0.7]).log().expand(20_000, 5)
    actions = head.sample(logs, head.noise(20_000, torch.Generator().manual_seed(0)))
    assert abs(float((actions[:, 0] == 1).float().mean()) - 0.75) < 0.02
    assert abs(float((actions[:, 1] == 2).float().mean()) - 0.7) < 0.02
    expected = torch.tensor([0.75 * 0.7]).log()
    torch.testing.assert_close(head.log_prob(logs[:1], torch.tensor([[1, 2]])), expected)


def test_the_gaussian_maps_its_units_to_the_bounds() -> None:
    head = GaussianHead(spaces.Box(np.float32([-2, 0]), np.float32([2, 10])), 8)
    env_action = head.to_env(torch.tensor([[-1.0, 1.0], [0.0, 0.0], [5.0, -5.0]]))
    assert env_action.tolist() == [[-2, 10], [0, 5], [2, 0]]
    parameters = torch.tensor([[0.5, -0.5, 0.0, 0.3]])
    normal = torch.distributions.Normal(parameters[:, :2], parameters[:, 2:].exp())
    action = torch.tensor([[0.1, 0.2]])
    torch.testing.assert_close(head.log_prob(parameters, action), normal.log_prob(action).sum(-1))


def test_no_rounding_leads_out_of_the_bounds() -> None:
    generator = np.random.default_rng(0)
    low = generator.uniform(-3, 1, 2_000).astype(np.float32)
    high = low + generator.uniform(0.1, 4, 2_000).astype(np.float32)
    space = spaces.Box(low, high)
    head = GaussianHead(space, 8)
    for unit in (-1.0, 1.0):
        assert space.contains(head.to_env(torch.full((1, 2_000), unit))[0])
    huge = spaces.Box(-3e38, 3e38, (1,), np.float32)  # whose span is no float32: as if unbounded
    assert GaussianHead(huge, 8).to_env(torch.tensor([[2.0]])).tolist() == [[2.0]]


def test_a_space_without_a_head_or_an_encoder_is_refused() -> None:
    with pytest.raises(ValueError, match="no head covers"):
        build_head(spaces.MultiBinary(3), 8)
    with pytest.raises(ValueError, match="no encoder covers"):
        ObservationEncoder(spaces.Text(5), 8, image="cnn")


@pytest.mark.parametrize("kind", ["cnn", "patches", "resnet"])
@pytest.mark.training
def test_what_changes_in_a_picture_is_not_drowned_by_the_previous_action(kind: str) -> None:
    torch.manual_seed(0)
    env = MemoryMazeVectorEnv(64, config=MemoryMazeConfig(), seed=0)
    pictures = torch.as_tensor(env.reset()[0])
    env.close()
    policy = Policy(
        env.single_observation_space,
        env.single_action_space,
        torso=TorsoConfig(),
        policy=PolicyConfig(image_encoder=kind),
    )
    with torch.no_grad():
        of_picture = policy.encoder({"obs": pictures}).std(0).mean()
        of_action = policy.previous_action(torch.eye(6)).std(0).mean()
    assert of_picture > of_action


@pytest.mark.parametrize("kind", ["cnn", "patches", "resnet"])
@pytest.mark.parametrize("shape", [(64, 64, 3), (3, 64, 64), (7, 7, 3)])
def test_images_of_either_layout_give_features_for_any_leading_axes(
    kind: str, shape: tuple
) -> None:
    torch.manual_seed(0)
    space = spaces.Dict({"see": spaces.Box(0, 255, shape, np.uint8), "n": spaces.Discrete(5)})
    encoder = ObservationEncoder(space, 16, image=kind)
    pixels = torch.randint(0, 256, (2, 3, *shape), dtype=torch.uint8)
    number = torch.randint(0, 5, (2, 3))
    both = encoder({"see": pixels, "n": number})
    assert both.shape == (2, 3, 16)
    alone = encoder({"see": pixels[:, 1], "n": number[:, 1]})
    torch.testing.assert_close(both[:, 1], alone, rtol=1e-4, atol=1e-5)


def test_a_steps_number_is_encoded_exactly_however_long_the_episode() -> None:
    encoder = StepEncoder(8)
    steps = torch.arange(2**10)
    features = encoder(steps)
    assert torch.equal(encoder(steps + 2**40), features)  # whole periods later
    assert torch.equal(encoder(steps.view(2, -1)), features.view(2, -1, 8))
    assert torch.cdist(features, features).fill_diagonal_(1).min() > 0.01


def test_where_nothing_is_seen_the_steps_number_has_gradients() -> None:
    policy = Policy(
        spaces.Box(-1, 1, (3,)),
        spaces.Discrete(2),
        torso=TorsoConfig(width=16, num_heads=2),
        policy=PolicyConfig(episode_step=True),
    )
    nothing = {"obs": torch.zeros(2, 3, 3), EPISODE_STEP: torch.arange(3).expand(2, 3)}
    rest = torch.zeros(2, 3, 1).long(), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    outputs, _ = policy(PolicyInputs(nothing, *rest), policy.torso.initial_state(2))
    outputs.action_parameters.square().sum().backward()
    assert policy.episode_step.output.weight.grad.norm() > 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_an_observation_that_has_a_steps_number_already_is_refused() -> None:
    space = spaces.Dict({"episode_step": spaces.Discrete(5)})
    with pytest.raises(
        ValueError, match=r"key 'episode_step', which policy\.episode_step=true adds"
    ):
        Policy(
            space,
            spaces.Discrete(2),
            torso=TorsoConfig(),
            policy=PolicyConfig(episode_step=True),
        )


def update(head: ValueHead, targets: torch.Tensor) -> None:
    head.update_statistics(targets.mean(), targets.var(correction=0))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.floats(-1e3, 1e3), st.floats(1e-2, 1e3), st.integers(1, 5))
def test_following_the_returns_changes_no_value(
    seed: int, mean: float, deviation: float, updates: int
) -> None:
    torch.manual_seed(seed)
    head = ValueHead(8).double()
    features = torch.randn(5, 8).double()
    update(head, mean + deviation * torch.randn(1000).double())
    before = head(features)
    for _ in range(updates):
        update(head, mean + deviation * torch.randn(1000).double())
    assert torch.allclose(head(features), before, rtol=1e-9, atol=1e-9)
    assert float(head.mean) == pytest.approx(mean, abs=0.2 * deviation)
    assert float(head.deviation) == pytest.approx(deviation, rel=0.2)


def test_the_first_returns_only_set_the_units() -> None:
    """Untrained values of size 1 would dominate advantages from rewards of size 0.01."""
    torch.manual_seed(0)
    head, features = ValueHead(8), torch.randn(500, 8)
    untrained = head(features).detach()
    targets = 0.3 + 0.01 * torch.randn(1000)
    update(head, targets)
    expected = targets.mean() + targets.std(correction=0) * untrained
    torch.testing.assert_close(head(features).detach(), expected)


def test_values_start_in_the_rewards_own_units_and_constant_returns_are_harmless() -> None:
    head = ValueHead(8)
    assert float(head.deviation) == 1.0
    update(head, torch.zeros(100))
    assert float(head.deviation) == pytest.approx(ValueHead.MIN_DEVIATION)
    assert head(torch.randn(3, 8)).isfinite().all()


@pytest.mark.parametrize("module", [ObservationEncoder, ObservationDecoder])
def test_a_leaf_may_have_any_name(module: type[Any]) -> None:
    names = ["a.b", "a%2Eb", "", "keys", "%keys", "training", "größe", "a b", "obs"]
    space = spaces.Dict({name: spaces.Box(-1, 1, (2,), np.float32) for name in names})
    options = {"image": "cnn"} if module is ObservationEncoder else {}
    leaves = module(space, 8, **options).leaves
    assert len(leaves) == len(names)
    assert "obs" in leaves  # Common names stay, and with them the names of saved weights.
