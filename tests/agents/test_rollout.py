"""The rollout buffer: every step comes back with its own memory, in the bytes predicted."""

import torch

from mtxl_rl.agents.rollout import Rollout, RolloutShape, random_minibatches
from mtxl_rl.agents.transition import Decision, PolicyInputs, Transition
from mtxl_rl.agents.world import World, masked_moments
from mtxl_rl.torso import MemoryState

SHAPE = RolloutShape(
    num_envs=3,
    num_steps=8,
    span_length=4,
    observation={"obs": ((2,), torch.float32), "pixels": ((4, 4, 3), torch.uint8)},
    action=((1,), torch.long),
    num_layers=2,
    window_length=5,
    width=6,
    memory_shape=(2, 2, 3, 3),
)


def numbered() -> Rollout:
    """A rollout whose entries encode where they are: 100 x environment + step."""
    rollout = Rollout(SHAPE)
    env = torch.arange(3)
    for t in range(8):
        number = 100 * env + t
        inputs = PolicyInputs(
            {
                "obs": number[:, None].expand(3, 2).float(),
                "pixels": torch.zeros(3, 4, 4, 3, dtype=torch.uint8),
            },
            previous_action=number[:, None] - 1,
            previous_reward=number.float() - 1,
            is_first=torch.zeros(3, dtype=torch.bool),
        )
        if rollout.starts_span(t):
            long_term = (100 * env + t // 4).float().view(3, 1, 1, 1, 1).expand(3, 2, 2, 3, 3)
            rollout.snapshot(t, MemoryState(
                window=torch.zeros(3, 2, 5, 6),
                window_length=env + 10 * (t // 4),
                long_term=long_term,
                segment_step=env,
                odometry=torch.zeros(3, 0),
            ))  # fmt: skip
        none = torch.zeros(3, dtype=torch.bool)
        decision = Decision(number[:, None], torch.zeros(3), number.float())
        rollout.record(t, Transition(inputs, decision, none, number.float(), number.float(), none))
    rollout.timeline[:] = (100 * env[:, None] + torch.arange(13))[:, None, :, None]
    return rollout


def test_every_step_comes_back_once_with_its_own_memory() -> None:
    rollout = numbered()
    assert bool(rollout.valid.all())
    unused = torch.zeros(3, 8)
    minibatches = random_minibatches(6, 3, generator=torch.Generator().manual_seed(0))
    batches = [rollout.spans(items, unused, unused) for items in minibatches]
    values = torch.cat([spans.value.flatten() for spans in batches])
    assert sorted(values.tolist()) == sorted(rollout.value.flatten().tolist())
    for spans in batches:
        env, step = spans.value[:, 0] // 100, spans.value[:, 0] % 100
        assert torch.equal(spans.inputs.observation["obs"][..., 0], spans.value)
        assert torch.equal(spans.action[..., 0].float(), spans.value)
        assert torch.equal(spans.inputs.previous_reward, spans.value - 1)
        window = 100 * env[:, None] + step[:, None] + torch.arange(5)
        assert torch.equal(spans.memory.window[:, 0, :, 0], window)
        assert torch.equal(spans.memory.long_term[:, 0, 0, 0, 0], 100 * env + step // 4)
        assert torch.equal(spans.memory.window_length.float(), env + 10 * (step // 4))


def test_bytes_are_those_predicted_and_the_timeline_costs_m_plus_t() -> None:
    predicted = Rollout(SHAPE, device="meta").nbytes_by_part()
    assert Rollout(SHAPE).nbytes_by_part() == predicted
    assert predicted["timeline"] == 3 * 2 * (5 + 8) * 6 * 4


def test_moments_are_those_of_the_marked_entries() -> None:
    values, mask = torch.randn(3, 8), torch.ones(3, 8, dtype=torch.bool)
    mask[0, :6] = False
    ((mean, variance),) = masked_moments([values], mask, World())
    torch.testing.assert_close(mean, values[mask].mean())
    torch.testing.assert_close(variance, values[mask].var(correction=0))
    values[~mask] = float("nan")
    columns = torch.stack([values, 2 * values], dim=-1)
    single, both = masked_moments([values, columns], mask, World())
    assert single == (mean, variance)
    torch.testing.assert_close(both.mean, torch.stack([mean, 2 * mean]))
    torch.testing.assert_close(both.variance, torch.stack([variance, 4 * variance]))
