"""Evaluation while training: it changes no number of the run, and chooses the best checkpoint."""

import random
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import mtxl_rl
from mtxl_rl import agent
from mtxl_rl.config_files import load_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.evaluation import periodic
from mtxl_rl.evaluation.periodic import unchanged_random_state
from mtxl_rl.evaluation.recording import Recording
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.metrics import read_rows

SIZES = {
    "model": "tiny", "device": "cpu", "torso.width": 16, "torso.num_heads": 2,
    "torso.window_length": 4, "torso.segment_length": 4, "ppo.rollout_length": 16,
    "ppo.bptt_segments": 2, "ppo.num_epochs": 1, "ppo.num_minibatches": 2, "num_envs": 4,
}  # fmt: skip
TINY = {**SIZES, "env.corridor_length": 9, "total_steps": 256}
EVALUATED = {"eval_every": 100, "eval_episodes": 6, "eval_video": False}


class Global(gymnasium.Env[Any, Any]):
    """Draws from the global generators of torch and NumPy; counts its instances."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)
    num_made = 0

    def __init__(self) -> None:
        type(self).num_made += 1

    def _observe(self) -> Any:  # noqa: ANN401
        return np.array([torch.rand(()).item(), np.random.rand()], np.float32)  # noqa: NPY002

    def reset(  # noqa: D102
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.t = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401, D102
        self.t += 1
        observation = self._observe()
        return observation, float(observation[action]), self.t == 6, False, {}


def learned(run_dir: Path) -> list[dict[str, Any]]:
    """The rows without evaluations and times."""
    return [
        {
            key: row[key]
            for key in row
            if not key.startswith(("eval/", "time/", "memory/", "charts/SPS"))
        }
        for row in read_rows(run_dir)
    ]


@pytest.mark.parametrize("env", ["TMaze", Global], ids=["task", "global-generators"])
@pytest.mark.training
def test_an_evaluation_changes_no_number_of_the_run(tmp_path: Path, env: Any) -> None:  # noqa: ANN401
    options = TINY if env == "TMaze" else {**SIZES, "total_steps": 256}
    plain, evaluated = tmp_path / "plain", tmp_path / "evaluated"
    for folder, more in ((plain, {}), (evaluated, EVALUATED)):
        np.random.seed(0)  # noqa: NPY002
        mtxl_rl.train(env, {**options, **more}, run_dir=folder, verbose=False)
    assert learned(plain) == learned(evaluated)
    expected, actual = checkpoint.load(plain), checkpoint.load(evaluated)
    for key, weight in expected["agent"]["policy"].items():
        assert torch.equal(weight, actual["agent"]["policy"][key]), key
    is_evaluated = {row["step"]: "eval/episodic_return" in row for row in read_rows(evaluated)}
    assert is_evaluated == {64: False, 128: True, 192: False, 256: True}


def test_a_block_leaves_the_global_generators_unchanged() -> None:
    def draw() -> tuple[float, float, float]:
        return torch.rand(()).item(), np.random.rand(), random.random()  # noqa: NPY002

    def seed() -> None:
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002
        random.seed(3)

    seed()
    expected = draw()
    seed()
    with unchanged_random_state(torch.device("cpu")):
        assert draw() == expected
    assert draw() == expected


@pytest.mark.training
def test_the_best_checkpoint_has_the_highest_evaluated_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    returns = iter([1.0, 3.0, 2.0])

    def evaluate(self: mtxl_rl.Agent, *_: Any, **__: Any) -> list[dict[str, float]]:  # noqa: ANN401
        return [{"return": next(returns), "length": float(self.step)}]

    monkeypatch.setattr(Recording, "diagnostics", [])
    monkeypatch.setattr(mtxl_rl.Agent, "evaluate", evaluate)
    run = mtxl_rl.train(
        "TMaze", TINY, eval_every=90, eval_video=False, run_dir=tmp_path, verbose=False
    )
    rows = [row for row in read_rows(tmp_path) if "eval/episodic_return" in row]
    assert [row["step"] for row in rows] == [128, 192, 256]
    assert [row["eval/episodic_length"] for row in rows] == [128, 192, 256]
    assert run.best == checkpoint.Header(step=192, score=3.0)


@pytest.mark.training
def test_an_evaluation_has_environments_of_its_own(tmp_path: Path) -> None:
    options = {**SIZES, "total_steps": 64, **EVALUATED}
    Global.num_made = 0
    mtxl_rl.train(Global, options, run_dir=tmp_path / "a", verbose=False)
    assert Global.num_made == 4 + 6
    vector = SyncVectorEnv([Global] * 4, autoreset_mode=AutoresetMode.NEXT_STEP)
    with pytest.raises(ValueError, match=r"needs environments of its own.*pass eval_env="):
        mtxl_rl.train(vector, options, run_dir=tmp_path / "b")
    other = Global()
    mtxl_rl.train(vector, options, eval_env=other, run_dir=tmp_path / "b", verbose=False)
    assert "eval/episodic_return" in read_rows(tmp_path / "b")[-1]
    with pytest.raises(ValueError, match=r"eval_env= has no effect without eval_every="):
        mtxl_rl.train(vector, SIZES, eval_env=other, run_dir=tmp_path / "c")


def test_an_evaluation_has_no_curriculum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs = list[Any]()

    def record(config: Any, **arguments: Any) -> Any:  # noqa: ANN401
        configs.append(config)
        return make_vector_env(config, **arguments)

    monkeypatch.setattr(agent, "make_vector_env", record)
    monkeypatch.setattr(Recording, "diagnostics", [])
    monkeypatch.setattr(agent, "play_episodes", lambda *_, **__: [{"return": 1.0, "length": 1.0}])
    options = {**SIZES, **EVALUATED, "total_steps": 64, "env.curriculum": {"5x5": 0.9}}
    mtxl_rl.train("MemoryMaze", options, stagger_steps=0, run_dir=tmp_path, verbose=False)
    assert [config.curriculum for config in configs] == [{}]
    assert load_config(tmp_path).env.curriculum == {"5x5": 0.9}


@pytest.mark.training
def test_an_evaluation_draws_and_passes_histograms_to_the_loggers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("imageio")
    pytest.importorskip("matplotlib")
    options = {**TINY, **EVALUATED, "eval_video": True, "total_steps": 64, "torso": "mtxl"}
    mtxl_rl.train("TMaze", options, run_dir=tmp_path / "run", verbose=False)
    files = {path.name for path in (tmp_path / "run" / "evaluations").iterdir()}
    assert files == {"step_000000000064.gif", "step_000000000064.png"}
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0})
    events.Reload()
    tags = events.Tags()
    assert set(tags["images"]) == {"evaluation/video", "evaluation/memory_timeline"}
    image = events.Images("evaluation/video")[0]
    assert (image.step, image.encoded_image_string[:4]) == (64, b"GIF8")
    assert {"histograms/action_probability", "gates/layer_1/moved_read"} <= set(tags["histograms"])
    assert 0 < read_rows(tmp_path / "run")[-1]["memory/strength"] < 1

    def fail(*_: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(periodic, "write_video", fail)
    mtxl_rl.train("TMaze", options, run_dir=tmp_path / "other")
    assert ".gif was not drawn: RuntimeError: no font" in capsys.readouterr().out
    assert len(list((tmp_path / "other" / "evaluations").iterdir())) == 1
