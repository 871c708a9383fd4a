import torch

from mtxl_rl.agents.rollout import Rollout, RolloutShape

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
    """A rollout whose rows say where they are: 100 x environment + step."""
    rollout = Rollout(SHAPE)
    rows = 100 * torch.arange(3)[:, None] + torch.arange(8)
    rollout.observation["obs"][:] = rows[..., None]
    rollout.action[:, 1:, 0], rollout.reward[:, 1:] = rows, rows
    rollout.value[:] = rows
    rollout.valid[:] = True
    rollout.timeline[:] = (100 * torch.arange(3)[:, None] + torch.arange(13))[:, None, :, None]
    for span in range(2):
        rollout.snapshot(
            4 * span,
            slice(0, 3),
            long_term=(100 * torch.arange(3) + span).view(3, 1, 1, 1, 1).expand(3, 2, 2, 3, 3),
            window_length=torch.arange(3) + 10 * span,
            segment_step=torch.arange(3),
        )
    return rollout


def test_every_row_comes_out_once_with_its_own_memory() -> None:
    rollout = numbered()
    generator = torch.Generator().manual_seed(0)
    batches = list(rollout.minibatches(torch.randn(3, 8), num_minibatches=3, generator=generator))
    assert sorted(torch.cat([b.value.flatten() for b in batches]).tolist()) == sorted(
        rollout.value.flatten().tolist()
    )
    for spans in batches:
        env, step = spans.value[:, 0] // 100, spans.value[:, 0] % 100
        assert torch.equal(spans.observation["obs"][..., 0], spans.value)
        assert torch.equal(spans.action[..., 0].float(), spans.value)
        later = step > 0
        assert torch.equal(spans.previous_reward[later], spans.value[later] - 1)
        assert torch.equal(
            spans.window[:, 0, :, 0], 100 * env[:, None] + step[:, None] + torch.arange(5)
        )
        assert torch.equal(spans.long_term[:, 0, 0, 0, 0], 100 * env + step // 4)
        assert torch.equal(spans.window_length.float(), env + 10 * (step // 4))


def test_bytes_are_those_predicted_and_the_timeline_costs_m_plus_t() -> None:
    rollout = Rollout(SHAPE)
    assert rollout.nbytes_by_part() == SHAPE.bytes_by_part()
    assert SHAPE.bytes_by_part()["timeline"] == 3 * 2 * (5 + 8) * 6 * 4


def test_advantages_are_normalised_over_the_valid_rows_only() -> None:
    rollout = numbered()
    rollout.valid[0, :6] = False
    advantage = torch.randn(3, 8)
    advantage[0, :6] = 1e6
    batches = rollout.minibatches(advantage, num_minibatches=1, generator=torch.Generator())
    spans = next(iter(batches))
    chosen = spans.advantage[spans.valid]
    assert abs(float(chosen.mean())) < 1e-5
    assert abs(float(chosen.std(correction=0)) - 1) < 1e-4
