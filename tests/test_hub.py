"""Tests of sharing agents."""

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mtxl_rl.agent import Agent
from mtxl_rl.command import options_of
from mtxl_rl.command.options import default_text
from mtxl_rl.compose import compose_config
from mtxl_rl.evaluate import main as evaluate
from mtxl_rl.hub import PullConfig, PushConfig, main
from mtxl_rl.tracking.run_record import RECORD_FILE
from mtxl_rl.training import trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    options = ["env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=4", "total_steps=128",
               "torso.window_length=4", "torso.segment_length=4", "ppo.rollout_length=16",
               "ppo.bptt_segments=4", "device=cpu", f"run_dir={folder}"]  # fmt: skip
    return trainer.run_until_signal(compose_config(options))[0]


@pytest.fixture
def repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a stand-in for huggingface_hub keeps its repositories."""
    root = tmp_path / "repositories"

    class HfApi:
        def create_repo(self, name: str, *, private: bool, exist_ok: bool) -> None:
            assert exist_ok
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / f"{name}.private").write_text(str(private))

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> None:
            shutil.copytree(folder_path, root / repo_id, dirs_exist_ok=True)

    module = ModuleType("huggingface_hub")
    module.HfApi, module.snapshot_download = HfApi, lambda name: str(root / name)  # type: ignore[attr-defined]
    module.__spec__ = pytest.__spec__
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return root


@pytest.mark.training
def test_an_agent_in_a_folder_acts_as_the_runs(run: Path, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    main(["push", f"checkpoint={run}", f"to={shared}", "episodes=4"])
    assert sorted(path.name for path in shared.iterdir()) == ["README.md", "policy.safetensors"]
    expected = Agent.load(run).evaluate(episodes=8)
    episodes = Agent.load(shared).evaluate(episodes=8)
    assert episodes == expected


@pytest.mark.training
def test_a_model_card_has_scores_with_each_memory(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "shared"
    main(["push", f"checkpoint={run}", f"to={shared}", "episodes=4", "weights=bfloat16"])
    card = (shared / "README.md").read_text()
    for part in ("# TMaze", "| Steps | 128 |", "| Seed | 0 |", "| Windows reach | 8 steps back |",
                 "| on |", "| zero |", "| noise |", "Largest ratio deviation"):  # fmt: skip
        assert part in card
    success = Agent.load(shared).evaluate(episodes=4)
    mean = sum(episode["success"] for episode in success) / 4
    assert f"{mean:.3f} +-" in next(line for line in card.splitlines() if line.startswith("| on"))
    weights = Agent.load(shared).policy.state_dict()
    assert all(
        torch.equal(w, w.bfloat16().float()) for w in weights.values() if w.is_floating_point()
    )
    evaluate([f"checkpoint={shared}", "episodes=4", "num_envs=4"])
    assert "step 128" in capsys.readouterr().out


@pytest.mark.training
def test_a_shared_agent_holds_no_paths_of_the_machine(run: Path, tmp_path: Path) -> None:
    copy, shared = tmp_path / "copy", tmp_path / "shared"
    shutil.copytree(run, copy)
    record = json.loads((copy / RECORD_FILE).read_text())
    options = f"env=TMaze run_dir={run} teacher.policy={run}/teacher seed=0"
    record[0]["command"] = f"/usr/bin/python -m mtxl_rl.train {options}"
    (copy / RECORD_FILE).write_text(json.dumps(record))
    main(["push", f"checkpoint={copy}", f"to={shared}", "episodes=1"])
    command = "\npython -m mtxl_rl.train env=TMaze teacher.policy=teacher seed=0\n"
    assert command in (shared / "README.md").read_text()
    for path in shared.iterdir():
        assert str(run.parent).encode() not in path.read_bytes()


@pytest.mark.training
def test_a_repository_is_pushed_loaded_and_pulled(
    run: Path, tmp_path: Path, repositories: Path
) -> None:
    main(["push", f"checkpoint={run}", "to=hf://someone/maze", "episodes=2", "private=true"])
    assert (repositories / "someone/maze.private").read_text() == "True"
    assert Agent.load("hf://someone/maze").step == 128
    main(["pull", "source=hf://someone/maze", f"output={tmp_path / 'copy'}"])
    assert Agent.load(tmp_path / "copy").step == 128


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["send"], "send is unknown; type push or pull"),
        (["push"], "checkpoint= is missing"),
        (["push", "checkpoint=x"], "to= is missing"),
        (["push", "checkpoint=x", "to=y", "weights=int8"], "choose one of float32, bfloat16"),
        (["push", "checkpoint=nowhere", "to=y"], "nowhere does not exist"),
        (["pull", "source=nowhere", "output=y"], "has no policy.safetensors"),
        (["pull", "source=nowhere"], "output= is missing"),
    ],
)
def test_mistakes_are_explained(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(argv)
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_missing_package_is_named_before_anything_is_played(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(SystemExit):
        main(["push", f"checkpoint={run}", "to=hf://someone/maze"])
    assert "pip install 'mtxl_rl[hub]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_shows_the_commands_and_all_their_options(
    arguments: list[str], capsys: pytest.CaptureFixture
) -> None:
    main(arguments)
    help_text = capsys.readouterr().out
    assert "push checkpoint=RUN_DIR to=FOLDER" in help_text
    for schema in (PushConfig, PullConfig):
        for option in options_of(schema):
            assert f"\n{option.name}={default_text(option.default)} " in help_text
