"""Teachers: their actions where they lead, and the imitation loss."""

import copy
import itertools
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical, Normal, kl_divergence

import mtxl_rl
from mtxl_rl.agents.heads import build_head
from mtxl_rl.agents.teacher import (
    EnvTeacher,
    PolicyTeacher,
    TeacherConfig,
    imitation_loss,
    led_environments,
)
from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.training.run import Run
from mtxl_rl.training.trainer import run_until_signal as train
from tests.agents.test_privileged import SMALL, RecallSide

TINY = [
    "env=TMaze", "env.corridor_length=5", "model=tiny", "num_envs=8", "ppo.rollout_length=32",
    "torso.window_length=4", "torso.segment_length=4", "ppo.bptt_segments=2", "device=cpu",
    "stagger_steps=0", "compile=false",
]  # fmt: skip


@contextmanager
def student(teacher: PolicyTeacher | None, *options: str) -> Iterator[Run]:
    """A run whose teacher is `teacher`, or a copy of its own policy."""
    config = compose_config([*TINY, *options])
    config.teacher.policy = "a copy"
    with closing(make_vector_env(config.env, num_envs=8, seed=0)) as env:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                "mtxl_rl.training.run.make_teacher",
                lambda _, __, policy: teacher or PolicyTeacher(copy.deepcopy(policy)),
            )
            run = Run(config, env)
        run.start(seed=None)
        yield run


@pytest.mark.parametrize("loss", ["cross_entropy", "kl", "reverse_kl", "mse"])
def test_the_losses_of_discrete_actions(loss: str) -> None:
    torch.manual_seed(0)
    head = build_head(spaces.MultiDiscrete([2, 3]), 4)
    student, teacher = (head.normalise(2 * torch.randn(5, 7, 5)) for _ in range(2))
    config = TeacherConfig(loss=loss, temperature=0.5)
    expected = torch.zeros(5, 7)
    for part in (slice(0, 2), slice(2, 5)):
        student_distribution = Categorical(logits=student[..., part])
        teacher_distribution = Categorical(logits=teacher[..., part] / 0.5)
        expected += {
            "cross_entropy": -student_distribution.log_prob(teacher[..., part].argmax(-1)),
            "kl": kl_divergence(teacher_distribution, student_distribution),
            "reverse_kl": kl_divergence(student_distribution, teacher_distribution),
            "mse": (student_distribution.probs - teacher_distribution.probs).square().sum(-1),
        }[loss]
    torch.testing.assert_close(imitation_loss(head, student, teacher, config), expected)


@pytest.mark.parametrize("loss", ["cross_entropy", "kl", "reverse_kl", "mse"])
def test_the_losses_of_continuous_actions(loss: str) -> None:
    torch.manual_seed(0)
    head = build_head(spaces.Box(-1, 1, (3,), np.float32), 4)
    student, teacher = torch.randn(2, 5, 7, 6)
    student_distribution = Normal(student[..., :3], student[..., 3:].exp())
    teacher_distribution = Normal(teacher[..., :3], teacher[..., 3:].exp() * 0.25**0.5)
    expected = {
        "cross_entropy": -student_distribution.log_prob(teacher[..., :3]),
        "kl": kl_divergence(teacher_distribution, student_distribution),
        "reverse_kl": kl_divergence(student_distribution, teacher_distribution),
        "mse": (student_distribution.mean - teacher_distribution.mean).square(),
    }[loss].sum(-1)
    config = TeacherConfig(loss=loss, temperature=0.25)
    torch.testing.assert_close(imitation_loss(head, student, teacher, config), expected)


def test_led_environments_are_a_share_and_nested() -> None:
    led = [led_environments(64, share) for share in (0.0, 0.1, 0.5, 0.9, 1.0)]
    assert [int(rows.sum()) for rows in led] == [0, 6, 32, 58, 64]
    assert all((more | few == more).all() for few, more in itertools.pairwise(led))
    halves = led_environments(64, 0.5).reshape(2, 32).sum(1)
    assert abs(int(halves[0]) - int(halves[1])) <= 2


@pytest.mark.parametrize("options", [[], ["torso=gru"], ["policy.episode_step=true"]])
@pytest.mark.training
def test_a_copy_of_the_student_agrees_with_it_in_every_step(options: list[str]) -> None:
    """The teacher's memory follows the actions that were taken, across episodes and rollouts."""
    with student(None, "ppo.learning_rate=1e-30", *options) as run:
        for _ in range(3):
            metrics = run.iterate()
            assert metrics["teacher/agreement"] == pytest.approx(1, abs=1e-6)
            assert metrics["teacher/kl"] == pytest.approx(0, abs=1e-5)
        assert run.collector.rollout.is_first[:, 1:].any()


@pytest.mark.training
def test_led_actions_are_the_teachers_and_their_probabilities_the_students() -> None:
    torch.manual_seed(3)
    with student(None) as other:
        teacher = PolicyTeacher(other.policy)
        torch.nn.init.orthogonal_(teacher.policy.action_head.output.weight, 3.0)
    with student(teacher, "teacher.beta=0.5") as run:
        metrics = run.iterate()
        rollout, head = run.collector.rollout, run.policy.action_head
        assert rollout.teacher is not None
        choice = head.sample(rollout.teacher.parameters, None)
        is_led = rollout.teacher.is_led
        assert is_led.sum(0).tolist() == [4] * 32
        assert (rollout.action[:, 1:][is_led] == choice[is_led]).all()
        assert (rollout.action[:, 1:][~is_led] != choice[~is_led]).any()
        assert metrics["losses/ratio_deviation"] < 1e-4
        assert (rollout.counted == (rollout.valid & ~is_led)).all()


@pytest.mark.training
def test_ppo_learns_nothing_from_led_steps() -> None:
    """Rewards of led steps change no gradient; those of the others do."""
    gradients = []
    for led, others in [(0.0, 0.0), (5.0, 0.0), (0.0, 5.0)]:
        torch.manual_seed(0)
        with student(None, "teacher.beta=0.5", "teacher.coef=0") as run, torch.no_grad():
            rollout, _ = run.collector.collect()
            assert rollout.teacher is not None
            is_led = rollout.teacher.is_led
            pattern = torch.linspace(-1, 1, 32).expand(8, 32)
            rollout.training_reward += torch.where(is_led, led, others) * pattern
            before = [parameter.clone() for parameter in run.agent.parameters]
            with torch.enable_grad():
                run.agent.update(rollout, progress=0.0)
            after = run.agent.parameters
            gradients.append([b - a for a, b in zip(before, after, strict=True)])
    unchanged = [torch.equal(a, b) for a, b in zip(gradients[0], gradients[1], strict=True)]
    changed = [torch.equal(a, b) for a, b in zip(gradients[0], gradients[2], strict=True)]
    assert all(unchanged)
    assert not all(changed)


def test_schedules_end_after_their_steps() -> None:
    config = TeacherConfig(coef=2.0, final_coef=1.0, beta=1.0, final_beta=0.0, steps=100)
    assert [config.progress(step, total_steps=1000) for step in (0, 50, 100, 500)] == [0, 0.5, 1, 1]
    assert [config.coef_at(progress) for progress in (0.0, 0.5, 1.0)] == [2, 1.5, 1]
    assert [config.beta_at(progress) for progress in (0.0, 0.5, 1.0)] == [1, 0.5, 0]
    assert TeacherConfig().progress(500, total_steps=1000) == 0.5


@pytest.mark.training
def test_imitation_alone_solves_a_memory_task(tmp_path: Path) -> None:
    """The environment's teacher sees the side; the student saw its cue five steps ago."""
    options = {
        "teacher.policy": "env", "ppo.coef": 0, "ppo.final_coef": 0, "teacher.final_coef": 1,
        "total_steps": 10_752,
    }  # fmt: skip
    run = mtxl_rl.train(
        RecallSide, SMALL | options, run_dir=str(tmp_path / "run"), verbose=False
    )  # fmt: skip
    assert run.metrics["teacher/agreement"] > 0.9
    episodes = run.agent.evaluate(RecallSide, episodes=64, greedy=True)
    assert np.mean([episode["return"] for episode in episodes]) > 0.9


@pytest.mark.training
def test_episodes_that_were_led_are_counted_separately(tmp_path: Path) -> None:
    options = {"teacher.policy": "env", "teacher.beta": 1, "teacher.final_beta": 1}
    run = mtxl_rl.train(
        RecallSide, SMALL | options, total_steps=1536, run_dir=str(tmp_path / "run"), verbose=False
    )
    assert run.metrics["teacher/led_return"] == 1
    # No step counts for PPO, and none moves the statistics of the values.
    head = run.agent.policy.value_head
    assert int(head.num_updates) == 0
    assert float(head.variance) == 1
    assert all(parameter.isfinite().all() for parameter in run.agent.policy.parameters())
    assert "charts/episodic_return" not in run.metrics


@pytest.mark.training
def test_a_resumed_run_may_begin_to_imitate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = SMALL | {"policy.observations": [], "run_dir": str(tmp_path / "run")}
    mtxl_rl.train("GridMemoryMaze", options, total_steps=512, verbose=False)
    resume = {"resume": str(tmp_path / "run")}
    run = mtxl_rl.train(None, resume | {"teacher.policy": "explorer"}, total_steps=1024)
    assert "explorer has not seen the episodes of the checkpoint: new ep" in capsys.readouterr().out
    assert run.metrics["teacher/kl"] > 0
    mtxl_rl.train(None, resume, total_steps=1536)  # The same teacher: the episodes continue.
    assert "new episodes start" not in capsys.readouterr().out


@pytest.mark.slow
def test_an_agent_teaches_another_that_sees_less(tmp_path: Path) -> None:
    """A teacher without memory that receives the side; a student that must remember the cue."""
    teacher = mtxl_rl.train(
        RecallSide,
        SMALL | {"policy.observations": ["side"], "torso": "mlp"},
        total_steps=15_360, run_dir=str(tmp_path / "teacher"), verbose=False,
    )  # fmt: skip
    student = mtxl_rl.train(
        RecallSide,
        SMALL | {"teacher.policy": str(teacher.run_dir)},
        total_steps=15_360, run_dir=str(tmp_path / "student"), verbose=False,
    )  # fmt: skip
    episodes = student.agent.evaluate(RecallSide, episodes=64, greedy=True)
    assert np.mean([episode["return"] for episode in episodes]) > 0.9
    assert list(student.agent.observation_space) == ["cue"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            ["teacher.policy=nobody"],
            FileNotFoundError,
            "teacher.policy=nobody is not .* nor one of env",
        ),
        (["teacher.beta=2"], ValueError, r"teacher.beta=2.* must be in 0 .. 1"),
        (["teacher.temperature=0"], ValueError, "must be above 0"),
        (["teacher.loss=l1"], ValueError, "choose one of cross_entropy, kl, reverse_kl, mse"),
        (["ppo.coef=0"], ValueError, "for runs with a teacher"),
    ],
)
def test_wrong_options(
    options: list[str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        train(compose_config([*TINY, *options, f"run_dir={tmp_path / 'run'}"]))


def test_an_environment_without_a_teacher_is_reported() -> None:
    head = build_head(spaces.Discrete(3), 4)
    teacher = EnvTeacher(head, device=torch.device("cpu"))
    teacher.reset(2)
    with pytest.raises(ValueError, match=r"teacher_logits.* logits \[2, 3\]"):
        teacher.observe({})
    with pytest.raises(ValueError, match="needs discrete actions"):
        EnvTeacher(build_head(spaces.Box(-1, 1, (3,), np.float32), 4), device=torch.device("cpu"))
