"""The learner: its loss, its schedules, and the refresh of the memories that spans start from."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from mtxl_rl.agents import ppo
from mtxl_rl.agents.policy import Policy, PolicyConfig, PolicyOutputs
from mtxl_rl.agents.ppo import PPO, LossWeights
from mtxl_rl.agents.ppo_config import PPOConfig
from mtxl_rl.agents.ppo_loss import ppo_loss
from mtxl_rl.agents.rollout import Spans, random_minibatches
from mtxl_rl.agents.transition import PolicyInputs
from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.torso import MemoryState, TorsoConfig
from mtxl_rl.training.run import Run

# Spans of 4 steps are shorter than the window of 8, and episodes of 6 steps reset inside both.
SIZES = [
    "model=tiny", "num_envs=4", "device=cpu", "torso.window_length=8", "torso.segment_length=4",
    "ppo.bptt_segments=1", "ppo.rollout_length=32", "ppo.num_minibatches=4", "total_steps=1024",
]  # fmt: skip
ODOMETRY = "torso.odometry=true"
"""Set after the checks of a configuration: no leaf of TMaze could train it."""
OPTIONS = ["env=TMaze", "env.corridor_length=5", *SIZES]


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """A run whose second rollout is ready to be learned from."""
    options = getattr(request, "param", [])
    base = SIZES if any(option.startswith("env=") for option in options) else OPTIONS
    config = compose_config([*base, *(option for option in options if option != ODOMETRY)])
    config.torso.odometry = ODOMETRY in options
    with closing(make_vector_env(config.env, num_envs=4, seed=0)) as env:
        run = Run(config, env)
        run.collector.reset(seed=None)
        run.iterate()
        run.collector.collect()
        yield run


def learned_values(run: Run) -> Tensor:
    """Values [B, T] that the learner computes from the stored memories."""
    rollout = run.collector.rollout
    unused = torch.zeros_like(rollout.value)
    spans = rollout.spans(torch.arange(4 * rollout.shape.num_spans), unused, unused)
    return outputs_of(run, spans).value.view(4, -1)


def outputs_of(run: Run, spans: Spans, memory: MemoryState | None = None) -> PolicyOutputs:
    with torch.no_grad():
        outputs, _ = run.policy(spans.inputs, memory or spans.memory)
    return outputs


@pytest.mark.parametrize("run", [[], [ODOMETRY]], indirect=True)
def test_refreshing_with_the_same_weights_changes_nothing(run: Run) -> None:
    before = learned_values(run)
    rollout = run.collector.rollout
    assert torch.allclose(before, rollout.value, atol=1e-5)
    assert float(run.agent.refresh(rollout)) < 1e-6
    assert torch.allclose(learned_values(run), before, atol=1e-5)


@pytest.mark.parametrize("run", [[], [ODOMETRY]], indirect=True)
def test_refreshed_memories_are_those_that_the_new_weights_make(run: Run) -> None:
    rollout = run.collector.rollout
    with torch.no_grad():
        for weight in run.policy.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    stale = learned_values(run)
    assert float(run.agent.refresh(rollout)) > 1e-3
    state, parts = None, []
    for span in range(rollout.shape.num_spans):
        spans = rollout.span_of_every_env(span)
        with torch.no_grad():
            outputs, state = run.policy(spans.inputs, state or spans.memory)
        parts.append(outputs.value)
    expected = torch.cat(parts, dim=1)
    assert torch.allclose(learned_values(run), expected, atol=1e-5)
    assert not torch.allclose(stale, expected, atol=1e-3)


def a_minibatch(*, items: int = 3, steps: int = 5) -> tuple[Spans, dict[str, Tensor]]:
    """Random stored numbers, and the numbers of a current policy."""
    generator = torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return torch.randn(items, steps, generator=generator)

    empty = torch.zeros(0)
    spans = Spans(
        inputs=PolicyInputs({}, empty, empty, empty.bool()),
        memory=MemoryState(empty, empty, empty, empty, empty),
        action=empty,
        log_prob=-random().abs(),
        value=random(),
        advantage=random(),
        value_target=random(),
        valid=random() > -0.5,
    )
    current = {"log_prob": -random().abs(), "entropy": random().abs(), "value": random()}
    return spans, current


COEFFICIENTS = {"clip_coef": 0.2, "kl_coef": 3.0, "value_coef": 0.5, "entropy_coef": 0.01}


def test_the_loss_is_the_papers_step_by_step() -> None:
    spans, current = a_minibatch()
    terms = []
    for i in range(3):
        for t in range(5):
            if not spans.valid[i, t]:
                continue
            ratio = (current["log_prob"][i, t] - spans.log_prob[i, t]).exp()
            advantage = spans.advantage[i, t]
            clipped = min(max(ratio, torch.tensor(0.8)), torch.tensor(1.2))
            surrogate = min(ratio * advantage, clipped * advantage)
            value_loss = 0.5 * (current["value"][i, t] - spans.value_target[i, t]) ** 2
            kl = ratio - 1 - ratio.log()
            entropy = current["entropy"][i, t]
            terms.append(-surrogate + 3 * kl + 0.5 * value_loss - 0.01 * entropy)
    loss, _ = ppo_loss(**current, spans=spans, **COEFFICIENTS)
    assert torch.allclose(loss, torch.stack(terms).mean(), atol=1e-6)


def test_values_are_compared_in_units_of_their_deviation() -> None:
    spans, current = a_minibatch()
    losses = [
        ppo_loss(**current, spans=spans, **COEFFICIENTS, value_deviation=deviation)[1]
        for deviation in (1.0, torch.tensor(2.0))
    ]
    small, large = (float(metrics["losses/value_loss"]) for metrics in losses)
    assert large == pytest.approx(small / 4)


def test_rows_that_are_not_valid_weigh_nothing() -> None:
    spans, current = a_minibatch()
    before, _ = ppo_loss(**current, spans=spans, **COEFFICIENTS)
    wild = {key: torch.where(spans.valid, field, 3.0) for key, field in current.items()}
    other = spans._replace(advantage=torch.where(spans.valid, spans.advantage, -77.0))
    after, metrics = ppo_loss(**wild, spans=other, **COEFFICIENTS)
    assert torch.equal(before, after)
    assert float(metrics["losses/ratio_deviation"]) < float("inf")
    log_prob = torch.where(spans.valid, current["log_prob"], 200.0).requires_grad_()  # overflows
    loss, metrics = ppo_loss(**{**wild, "log_prob": log_prob}, spans=other, **COEFFICIENTS)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert gradient.isfinite().all()
    assert not gradient[~spans.valid].any()
    assert all(metric.isfinite() for metric in metrics.values())


@pytest.mark.parametrize("run", [["ppo.target_kl=0", "ppo.num_epochs=8"]], indirect=True)
@pytest.mark.training
def test_the_kl_penalty_keeps_a_policy_that_learns_from_noise(run: Run) -> None:
    rollout = run.collector.rollout
    rollout.value.normal_(generator=torch.Generator().manual_seed(0))  # so are the advantages
    unused = torch.zeros_like(rollout.value)
    spans = rollout.spans(torch.arange(4 * rollout.shape.num_spans), unused, unused)
    approx_kl = {}
    for kl_coef in (0.0, 3.0):
        config = dataclasses.replace(run.config.ppo, kl_coef=kl_coef)
        agent = PPO(copy.deepcopy(run.policy), config)
        agent.update(rollout, progress=0.0)
        _, metrics = agent.loss(spans, LossWeights())
        approx_kl[kl_coef] = float(metrics["losses/approx_kl"])
    assert approx_kl[3.0] < approx_kl[0.0] / 3


def test_small_advantages_slow_learning_down(run: Run) -> None:
    run.policy.value_head.variance.fill_(16.0)
    cases: list[tuple[dict[str, Any], float]] = [
        ({}, 0.25),
        ({"advantage_floor": 0.5}, 0.5),
        ({"advantage_floor": 0.125}, 1.0),
        ({"advantage_floor": 0.0}, 1.0),
        ({"popart": False}, 1.0),
    ]
    for options, factor in cases:
        agent = PPO(run.policy, dataclasses.replace(run.config.ppo, **options))
        assert agent._slowdown(torch.tensor(1.0)) == pytest.approx(factor), options
        assert agent._slowdown(torch.tensor(100.0)) == 1.0, options


@pytest.mark.parametrize("run", [["ppo.target_kl=1e-12", "ppo.num_epochs=9"]], indirect=True)
def test_a_large_kl_stops_before_the_next_update(run: Run) -> None:
    before = [weight.clone() for weight in run.policy.parameters()]
    metrics = run.agent.update(run.collector.rollout, progress=0.0)
    # The first minibatch meets the weights that acted, so it moves them; the second stops.
    assert metrics["losses/epochs"] == 1 / 4
    assert any((a != b).any() for a, b in zip(before, run.policy.parameters(), strict=True))


@pytest.mark.parametrize(
    "run",
    [["ppo.learning_rate=0.01", "ppo.final_learning_rate=0.002", "ppo.ratio_bound=1e9",
      "ppo.advantage_floor=0"]],
    indirect=True,
)  # fmt: skip
def test_schedules_are_linear_in_the_progress(run: Run) -> None:
    rates = [
        run.agent.update(run.collector.rollout, progress=progress)["charts/learning_rate"]
        for progress in (0.0, 0.5, 1.0, 1.5)
    ]
    assert rates == pytest.approx([0.01, 0.006, 0.002, 0.002])


@pytest.mark.parametrize("run", [["auxiliary.predict=[obs]"]], indirect=True)
def test_the_share_that_predictions_explain_is_of_steps_not_learned_from(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: list[dict[str, Tensor]] = []

    def recorded_loss(*args: Any) -> Any:  # noqa: ANN401
        result = PPO.loss(run.agent, *args)
        losses.append(result[1])
        return result

    monkeypatch.setattr(run.agent, "loss", recorded_loss)
    metrics = run.agent.update(run.collector.rollout, progress=0.0)
    names = [name for name in metrics if name.startswith("auxiliary/r2_")]
    assert names
    assert len(losses) == 3 * 4
    for name in names:
        key = name.replace("auxiliary/r2_", "losses/prediction_")
        errors = torch.stack([loss[key] for loss in losses])
        assert metrics[key] > 0
        assert metrics[key] == pytest.approx(float(errors.mean()), abs=1e-6)
        assert metrics[name] == pytest.approx(1 - float(errors[:4].mean()), abs=1e-6)


def test_every_item_is_in_one_minibatch_and_shares_are_equal() -> None:
    minibatches = random_minibatches(48, 4, generator=torch.Generator().manual_seed(0))
    assert sorted(minibatches.flatten().tolist()) == list(range(48))
    for first in range(0, 48, 8):  # Any process's 8 consecutive items: two in each minibatch.
        is_local = (minibatches >= first) & (minibatches < first + 8)
        assert is_local.sum(dim=1).tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize(
    "run",
    [
        [],
        ["torso=gru"],
        ["policy.precision=bfloat16"],
        ["env=MemoryMaze"],
        ["policy.episode_step=true"],
    ],
    indirect=True,
    ids=str,
)
@pytest.mark.training
def test_a_ratio_above_its_bound_is_allowed_what_rounding_explains(run: Run) -> None:
    rollout, random = run.collector.rollout, torch.get_rng_state()
    run.agent.ratio_bound = -1.0  # Any deviation, also one of exactly 0, is compared.
    assert run.agent.update(rollout, progress=0.0)["losses/ratio_deviation"] < 0.1
    assert torch.equal(torch.get_rng_state(), random)
    run.collector.collect()
    before = [weight.clone() for weight in run.policy.torso.parameters()]
    is_narrow = run.policy.config.precision == "bfloat16"
    rollout.log_prob += 0.5 if is_narrow else 1e-3  # As if another policy had acted.
    with pytest.raises(RuntimeError, match=r"rounding explains .*: acting and learning disagree"):
        run.agent.update(rollout, progress=0.0)
    assert all(map(torch.equal, before, run.policy.torso.parameters()))


class PlainAdam(torch.optim.Adam):
    """torch's unfused Adam, which does not read `found_inf`."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        self.found_inf = None
        super().step(closure)


@pytest.mark.parametrize(
    "run", [["env=MemoryMaze"], ["torso.position=learned"], ["torso=slots"]], indirect=True
)
@pytest.mark.training
def test_an_update_moves_every_weight_as_plain_adam_does(run: Run) -> None:
    # The fused Adam pairs weights and gradients by their place in storage, so gradients of
    # convolutions and of position tables must be laid out as the weights are.
    moved = []
    for is_fused in (True, False):
        agent = PPO(copy.deepcopy(run.policy), run.config.ppo)
        if not is_fused:
            agent.optimizer = PlainAdam(agent.parameters, lr=3e-4, eps=1e-5, foreach=False)
        agent.update(run.collector.rollout, progress=0.0)
        moved.append(dict(agent.policy.named_parameters()))
    for name, weight in moved[0].items():
        torch.testing.assert_close(weight, moved[1][name], rtol=0, atol=1e-5, msg=name)


def test_a_loss_that_is_not_finite_moves_no_weight(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [weight.clone() for weight in run.policy.torso.parameters()]
    real_loss = ppo.ppo_loss

    def infinite_loss(*args: object, **kwargs: object) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = real_loss(*args, **kwargs)  # type: ignore[arg-type]
        return loss * float("inf"), metrics

    monkeypatch.setattr(ppo, "ppo_loss", infinite_loss)
    with pytest.raises(ppo.NonFiniteLossError, match="loss became non-finite"):
        run.agent.update(run.collector.rollout, progress=0.0)
    assert all(map(torch.equal, before, run.policy.torso.parameters()))


@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-4), ("bfloat16", 0.25)])
def test_the_ratio_is_bound_as_the_precision_allows(precision: str, bound: float) -> None:
    policy = Policy(
        spaces.Discrete(3),
        spaces.Discrete(2),
        torso=TorsoConfig(width=8, num_heads=2, window_length=4, segment_length=4),
        policy=PolicyConfig(precision=precision),
    )
    assert PPO(policy, PPOConfig()).ratio_bound == bound
    assert PPO(policy, PPOConfig(ratio_bound=0.5)).ratio_bound == 0.5
