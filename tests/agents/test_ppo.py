"""The learner: its loss, its schedules, and the refresh of the memories that it starts from."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mtxl_rl.agents.ppo import PPO, _inputs, _memory, ppo_loss
from mtxl_rl.agents.rollout import Spans
from mtxl_rl.config import compose_config
from mtxl_rl.envs.groups import EnvGroups
from mtxl_rl.torso import MemoryTransformer
from mtxl_rl.train import Run

# Spans of 4 steps are shorter than the window of 8, and episodes of 6 steps reset inside both.
SIZES = [
    "model=tiny", "num_envs=4", "device=cpu", "torso.window_length=8", "torso.segment_length=4",
    "ppo.bptt_segments=1", "ppo.rollout_length=32", "ppo.num_minibatches=4", "total_steps=1024",
]  # fmt: skip
OPTIONS = ["env=TMaze", "env.corridor_length=5", *SIZES]


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """A run whose second rollout is ready to be learned from."""
    options = getattr(request, "param", [])
    chosen = SIZES if any(option.startswith("env=") for option in options) else OPTIONS
    config = compose_config([*chosen, *options])
    env = EnvGroups(config.env, num_envs=4, num_groups=config.env_groups, seed=0)
    this = Run(config, env)
    this.collector.reset(seed=None)
    this.iterate()
    this.collector.collect()
    yield this
    env.close()


def all_spans(run: Run) -> Spans:
    """Every span, those of an environment in order."""
    rollout = run.collector.rollout
    unused = torch.zeros_like(rollout.value)
    return rollout.spans(torch.arange(4 * rollout.shape.num_spans), unused, unused)


def values(run: Run) -> Tensor:
    """The values [B, T] that the learner computes from the stored memories."""
    spans = all_spans(run)
    with torch.no_grad():
        outputs, _ = run.policy(_inputs(spans), _memory(spans))
    return outputs.value.view(4, -1)


def test_refreshing_with_the_same_weights_changes_nothing(run: Run) -> None:
    before = values(run)
    rollout = run.collector.rollout
    assert torch.allclose(before, rollout.value, atol=1e-5)
    assert float(run.agent.refresh(rollout)) < 1e-6
    assert torch.allclose(values(run), before, atol=1e-5)


def test_refreshed_memories_are_those_that_the_new_weights_make(run: Run) -> None:
    rollout = run.collector.rollout
    with torch.no_grad():
        for weight in run.policy.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    stale = values(run)
    assert float(run.agent.refresh(rollout)) > 1e-3
    everyone = torch.arange(4) * rollout.shape.num_spans
    unused = torch.zeros_like(rollout.value)
    state, whole = None, []
    for span in range(rollout.shape.num_spans):
        spans = rollout.spans(everyone + span, unused, unused)
        with torch.no_grad():
            outputs, state = run.policy(_inputs(spans), state or _memory(spans))
        whole.append(outputs.value)
    assert torch.allclose(values(run), torch.cat(whole, dim=1), atol=1e-5)
    assert not torch.allclose(stale, torch.cat(whole, dim=1), atol=1e-3)


def a_minibatch(*, items: int = 3, steps: int = 5) -> tuple[Spans, dict[str, Tensor]]:
    """Random stored numbers, and what a policy might say of them now."""
    generator = torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return torch.randn(items, steps, generator=generator)

    empty = torch.zeros(0)
    fields = dict.fromkeys(Spans._fields, empty) | {
        "log_prob": -random().abs(),
        "value": random(),
        "advantage": random(),
        "value_target": random(),
        "valid": random() > -0.5,
    }
    said = {"log_prob": -random().abs(), "entropy": random().abs(), "value": random()}
    return Spans(**fields), said  # type: ignore[arg-type]


COEFFICIENTS = {"clip_coef": 0.2, "value_coef": 0.5, "entropy_coef": 0.01}


def test_the_loss_is_the_papers_step_by_step() -> None:
    spans, said = a_minibatch()
    terms = []
    for i in range(3):
        for t in range(5):
            if not spans.valid[i, t]:
                continue
            ratio = (said["log_prob"][i, t] - spans.log_prob[i, t]).exp()
            advantage = spans.advantage[i, t]
            clipped = min(max(ratio, torch.tensor(0.8)), torch.tensor(1.2))
            surrogate = min(ratio * advantage, clipped * advantage)
            value_loss = 0.5 * (said["value"][i, t] - spans.value_target[i, t]) ** 2
            terms.append(-surrogate + 0.5 * value_loss - 0.01 * said["entropy"][i, t])
    loss, _ = ppo_loss(**said, spans=spans, **COEFFICIENTS)
    assert torch.allclose(loss, torch.stack(terms).mean(), atol=1e-6)


def test_rows_that_are_not_valid_weigh_nothing() -> None:
    spans, said = a_minibatch()
    before, _ = ppo_loss(**said, spans=spans, **COEFFICIENTS)
    wild = {key: torch.where(spans.valid, field, 3.0) for key, field in said.items()}
    other = spans._replace(advantage=torch.where(spans.valid, spans.advantage, -77.0))
    after, metrics = ppo_loss(**wild, spans=other, **COEFFICIENTS)
    assert torch.equal(before, after)
    assert float(metrics["ppo/ratio_deviation"]) < float("inf")
    log_prob = torch.where(spans.valid, said["log_prob"], 200.0).requires_grad_()  # overflows
    loss, metrics = ppo_loss(**{**wild, "log_prob": log_prob}, spans=other, **COEFFICIENTS)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert gradient.isfinite().all()
    assert not gradient[~spans.valid].any()
    assert all(metric.isfinite() for metric in metrics.values())


@pytest.mark.parametrize("run", [["ppo.target_kl=1e-12", "ppo.num_epochs=9"]], indirect=True)
def test_a_large_kl_stops_before_the_next_update(run: Run) -> None:
    before = [weight.clone() for weight in run.policy.parameters()]
    metrics = run.agent.update(run.collector.rollout, progress=0.0)
    # The first minibatch meets the weights that acted, so it moves them; the second stops.
    assert metrics["ppo/epochs"] == 1 / 4
    assert any((a != b).any() for a, b in zip(before, run.policy.parameters(), strict=True))


@pytest.mark.parametrize(
    "run",
    [["ppo.learning_rate=0.01", "ppo.final_learning_rate=0.002", "ppo.ratio_bound=1e9"]],
    indirect=True,
)
def test_schedules_are_linear_in_the_progress(run: Run) -> None:
    found = [
        run.agent.update(run.collector.rollout, progress=progress)["ppo/learning_rate"]
        for progress in (0.0, 0.5, 1.0, 1.5)
    ]
    assert found == pytest.approx([0.01, 0.006, 0.002, 0.002])


@pytest.mark.parametrize("num_threads", [2, 3, 99])
def test_threads_that_share_a_minibatch_learn_what_one_learns(run: Run, num_threads: int) -> None:
    rollout = run.collector.rollout
    torch.manual_seed(0)
    advantage = torch.randn_like(rollout.value)
    spans = rollout.spans(torch.arange(8), advantage, rollout.value + advantage)
    found = []
    for threads in (1, num_threads):
        policy = copy.deepcopy(run.policy)
        agent = PPO(policy, run.config.ppo, num_threads=threads)
        for is_first in (True, False):  # At first its parts are learned one after another.
            metrics, _ = agent._step(spans, torch.tensor(0.01), is_first_update=is_first)
        found.append(metrics | dict(policy.named_parameters()))
    assert found[0].keys() == found[1].keys()
    for key, one in found[0].items():
        torch.testing.assert_close(one, found[1][key], rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize(
    "run",
    [
        ["ppo.ratio_bound=1e-12"],
        ["ppo.ratio_bound=1e-12", "torso=gru"],
        ["ppo.ratio_bound=1e-12", "policy.precision=bfloat16"],
        ["ppo.ratio_bound=1e-12", "env=MemoryMaze"],
        ["ppo.ratio_bound=1e-12", "policy.episode_step=true", "profile=true"],
    ],
    indirect=True,
    ids=str,
)
def test_a_ratio_above_its_bound_is_allowed_what_rounding_explains(run: Run) -> None:
    rollout, random = run.collector.rollout, torch.get_rng_state()
    assert 1e-12 < run.agent.update(rollout, progress=0.0)["ppo/ratio_deviation"] < 0.1
    assert torch.equal(torch.get_rng_state(), random)
    run.collector.collect()
    before = [weight.clone() for weight in run.policy.torso.parameters()]
    is_wide = run.policy.config.precision == "bfloat16"
    rollout.log_prob += 0.5 if is_wide else 1e-3  # as if something else had acted
    with pytest.raises(RuntimeError, match=r"rounding explains .*: acting and learning disagree"):
        run.agent.update(rollout, progress=0.0)
    assert all(map(torch.equal, before, run.policy.torso.parameters()))


class PlainAdam(torch.optim.Adam):
    """Torch's own, weight by weight, which takes no word on what is not finite."""

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        self.found_inf = None
        super().step(closure)


@pytest.mark.parametrize(
    "run", [["env=MemoryMaze"], ["torso.position=learned"], ["torso=slots"]], indirect=True
)
def test_a_minibatch_moves_every_weight_as_plain_adam_does(run: Run) -> None:
    # Gradients of pictures' convolutions and of a table of positions are no rows of numbers in the
    # weights' order, and torch's fused Adam does not look.
    rollout = run.collector.rollout
    torch.manual_seed(0)
    advantage = torch.randn_like(rollout.value)
    spans = rollout.spans(torch.arange(8), advantage, rollout.value + advantage)
    moved = []
    for is_fused in (True, False):
        policy = copy.deepcopy(run.policy)
        agent = PPO(policy, run.config.ppo)
        if not is_fused:
            agent.optimizer = PlainAdam(agent.parameters, lr=3e-4, eps=1e-5, foreach=False)
        agent.optimizer.param_groups[0]["lr"] = 3e-4
        agent._step(spans, torch.tensor(0.01), is_first_update=True)
        moved.append(dict(policy.named_parameters()))
    for name, weight in moved[0].items():
        torch.testing.assert_close(weight, moved[1][name], rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("factor", [1.0, 1.1, float("nan")])
def test_compiled_layers_with_other_gradients_are_refused(
    run: Run, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    def wrongly(layer: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
        def compiled(*inputs: Any) -> Any:  # noqa: ANN401
            y, after = layer(*inputs)
            return y + (factor - 1) * (y - y.detach()), after

        return compiled

    policy = copy.deepcopy(run.policy)
    assert isinstance(policy.torso, MemoryTransformer)
    monkeypatch.setattr("mtxl_rl.agents.policy.compiled", wrongly)
    policy.compile_learning()
    agent = PPO(policy, run.config.ppo, num_threads=2)
    if factor == 1.0:
        agent.update(run.collector.rollout, progress=0.0)
        return
    with pytest.raises(RuntimeError, match=r"of the compiled layers differs .* set compile=false"):
        agent.update(run.collector.rollout, progress=0.0)
