"""Everything that can be wrong with a run ends in one sentence, exit code 1, and nothing lost."""

import builtins
import errno
import json
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from mtxl_rl import evaluate, saved_agent, train
from mtxl_rl.agents import episodes
from mtxl_rl.compose import compose_config
from mtxl_rl.config_files import save_config
from mtxl_rl.saved_agent import read_agent, save_policy
from mtxl_rl.tracking import checkpoint

SIZES = [
    "model=tiny", "num_envs=4", "ppo.rollout_length=16", "torso.window_length=4", "device=cpu",
    "torso.segment_length=4", "ppo.bptt_segments=2", "checkpoint_seconds=0", "total_steps=192",
    "torso.width=16", "torso.num_heads=2", "ppo.num_epochs=1", "ppo.num_minibatches=2",
]  # fmt: skip


class Faulty(gymnasium.Env[Any, Any]):
    """Well behaved for `good_steps` steps; then its observation or its reward is `fault`."""

    def __init__(self, *, where: str = "", fault: float = 0.0, good_steps: int = 40) -> None:
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.where, self.fault, self.good_steps = where, fault, good_steps

    def reset(  # noqa: D102
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ARG002, D102
        self.t += 1
        wrong = self.fault if self.t > self.good_steps else 0.0
        observation = np.full(3, wrong if self.where == "observation" else 0.0, np.float32)
        return observation, wrong if self.where == "reward" else 0.0, False, False, {}


class Failing(Faulty):
    """Raises an error of its own."""

    def __init__(self, *, where: str = "", error: str = "ValueError") -> None:
        super().__init__(good_steps=10**9)
        self.where, self.error = where, error
        self._fail("init")

    def _fail(self, where: str) -> None:
        if where == self.where:
            raise getattr(builtins, self.error)("boom in the user env")

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401, D102
        self._fail("reset")
        return super().reset(**kwargs)

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: D102
        self._fail("step")
        return super().step(action)


class OddSpaces(Faulty):
    """Spaces that no encoder or head covers."""

    def __init__(self, *, odd: str) -> None:
        super().__init__()
        if odd == "observation":
            self.observation_space = spaces.Sequence(spaces.Discrete(3))
        else:
            self.action_space = spaces.Sequence(spaces.Discrete(3))


class OnlyOneAction(gymnasium.Env[Any, Any]):
    """Allows one action at a time, and ends the program when another one is taken."""

    def __init__(self) -> None:
        mask = spaces.Box(0, 1, (5,), np.int8)
        self.observation_space = spaces.Dict({"action_mask": mask, "x": spaces.Box(-1, 1, (2,))})
        self.action_space = spaces.Discrete(5)

    def _observe(self) -> dict[str, Any]:
        self.allowed = int(self.np_random.integers(5))
        mask = (np.arange(5) == self.allowed).astype(np.int8)
        return {"action_mask": mask, "x": np.zeros(2, np.float32)}

    def reset(  # noqa: D102
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.t = 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: D102
        if action != self.allowed:
            raise RuntimeError(f"action {action} was taken and only {self.allowed} is allowed")
        self.t += 1
        return self._observe(), 1.0, self.t == 7, False, {}


def same_step_vector(num_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([Faulty] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("Faulty-v0", Faulty)
    gymnasium.register("Failing-v0", Failing)
    gymnasium.register("OddSpaces-v0", OddSpaces)
    gymnasium.register("OnlyOneAction-v0", OnlyOneAction)
    gymnasium.register("SameStep-v0", vector_entry_point=same_step_vector)
    yield
    for name in ("Faulty-v0", "Failing-v0", "OddSpaces-v0", "OnlyOneAction-v0", "SameStep-v0"):
        gymnasium.registry.pop(name)


def sentence(capsys: pytest.CaptureFixture, *arguments: str, module: ModuleType = train) -> str:
    """Standard error of a command that must fail."""
    with pytest.raises(SystemExit) as stop:
        module.main(list(arguments))
    assert stop.value.code == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1, stderr
    return stderr


@pytest.mark.training
@pytest.mark.parametrize("where", ["observation", "reward"])
@pytest.mark.parametrize("fault", ["nan", "inf"])
def test_numbers_that_are_not_finite_name_their_source_and_leave_the_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture, where: str, fault: str
) -> None:
    stderr = sentence(
        capsys, "env=Gymnasium", "env.id=Faulty-v0", *SIZES, f"run_dir={tmp_path / 'run'}",
        f"env.kwargs.where={where}", f"+env.kwargs.fault={fault}",
    )  # fmt: skip
    assert where in stderr
    assert fault in stderr.lower()
    assert checkpoint.load(tmp_path / "run")["step"] == 128  # two whole iterations before step 41


@pytest.mark.parametrize("where", ["init", "reset", "step"])
@pytest.mark.parametrize("error", ["ValueError", "TypeError", "RuntimeError", "OSError"])
@pytest.mark.training
def test_an_environments_own_exception_keeps_its_type_and_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture, where: str, error: str
) -> None:
    with pytest.raises(getattr(builtins, error), match="boom in the user env") as raised:
        train.main([
            "env=Gymnasium", "env.id=Failing-v0", *SIZES, f"run_dir={tmp_path / 'run'}",
            f"env.kwargs.where={where}", f"+env.kwargs.error={error}",
        ])  # fmt: skip
    cause = raised.value.__cause__ or raised.value  # Gymnasium chains a TypeError.
    assert traceback.extract_tb(cause.__traceback__)[-1].name == "_fail"
    assert "error:" not in capsys.readouterr().err


def test_an_autoreset_mode_that_hides_the_final_observation_is_refused(
    capsys: pytest.CaptureFixture,
) -> None:
    stderr = sentence(capsys, "env=Gymnasium", "env.id=SameStep-v0", *SIZES)
    assert "NEXT_STEP" in stderr


@pytest.mark.parametrize("odd", ["observation", "action"])
def test_spaces_that_nothing_covers_are_named(capsys: pytest.CaptureFixture, odd: str) -> None:
    stderr = sentence(
        capsys, "env=Gymnasium", "env.id=OddSpaces-v0", *SIZES, f"+env.kwargs.odd={odd}"
    )
    assert odd in stderr
    assert "Sequence" in stderr


@pytest.mark.training
def test_a_loss_that_diverges_names_the_last_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "run"
    options = ["env=TMaze", "env.corridor_length=5", *SIZES, f"run_dir={folder}"]
    train.main([*options, "total_steps=64"])
    capsys.readouterr()
    diverging = ["total_steps=9999", "ppo.learning_rate=1e38", "ppo.ratio_bound=1e30"]
    stderr = sentence(capsys, f"resume={folder}", *diverging)
    kept = checkpoint.latest(folder)
    assert "ppo.learning_rate" in stderr
    assert str(kept) in stderr
    weights = checkpoint.load(folder)["agent"]["policy"].values()
    assert all(weight.isfinite().all() for weight in weights)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train.main(["env=TMaze", *SIZES, "total_steps=64", f"run_dir={folder}"])
    return folder


@pytest.fixture
def a_run(finished: Path, tmp_path: Path) -> Path:
    """A copy of a run of one iteration."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.training
def test_damaged_and_foreign_checkpoints_are_refused(
    a_run: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = a_run
    path = checkpoint.latest(folder)
    assert path is not None
    content = bytearray(path.read_bytes())
    for damage, module, option in (
        (content[: len(content) // 2], train, "resume"),
        (content[: len(content) // 2], evaluate, "checkpoint"),
        (b"not a checkpoint", train, "resume"),
    ):
        path.write_bytes(damage)
        capsys.readouterr()
        assert str(path) in sentence(capsys, f"{option}={folder}", module=module)
        assert path.read_bytes() == bytes(damage)
    torch.save({"weights": torch.zeros(3)}, path)
    assert "not a checkpoint of mtxl_rl" in sentence(capsys, f"resume={folder}")


@pytest.mark.training
def test_an_intact_checkpoint_next_to_a_damaged_one_continues_the_run(
    a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = a_run
    whole = checkpoint.find(folder)
    train.main([f"resume={folder}", "total_steps=128"])
    damaged = checkpoint.find(folder)
    damaged.write_bytes(damaged.read_bytes()[:1000])
    capsys.readouterr()
    stderr = sentence(capsys, f"resume={folder}", "total_steps=192")
    assert f"{whole} is intact and can be given instead" in stderr
    assert "run_dir=NEW_FOLDER" in stderr
    assert "run_dir=NEW_FOLDER" in sentence(capsys, f"resume={whole}", "total_steps=192")
    train.main([f"resume={whole}", "total_steps=192", f"run_dir={tmp_path / 'new'}"])
    assert checkpoint.read_header(checkpoint.find(tmp_path / "new")).step == 192


def test_a_folder_without_an_agents_run_is_refused(
    a_run: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = a_run
    path = folder / "config.yaml"
    whole = path.read_text()
    for content, expected in (
        ("dim: 64\nseed: 0\n", "is not an agent's configuration"),
        (whole[: len(whole) // 3], ""),  # torn between two lines, or within one
        (whole[: len(whole) // 3 + 7], ""),
        ("env: [", "not valid YAML: "),
        ("env: \0", "not valid YAML: "),
        ("env: &a [x]\ntorso: [*a, *a]\nppo: 1\n", "it has an alias"),
        ("env: null\ntorso: 1\nppo: 1\n", ""),
    ):
        path.write_text(content)
        capsys.readouterr()
        assert expected in sentence(capsys, f"checkpoint={folder}", module=evaluate)


@pytest.mark.training
def test_a_finished_run_is_reported_and_ignores_no_option(
    a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder, copy = a_run, tmp_path / "copy"
    capsys.readouterr()
    expected = "has 64 of total_steps=64: nothing is left to train"
    stderr = sentence(capsys, f"resume={folder}", "ppo.gamma=0.5", "ppo.value_coef=1")
    assert expected in stderr
    assert "ppo.gamma, ppo.value_coef would have no effect" in stderr
    train.main([f"resume={folder}", f"run_dir={copy}"])
    assert expected in capsys.readouterr().out
    train.main([f"resume={copy}", "total_steps=128"])  # a folder like any other
    assert checkpoint.read_header(checkpoint.find(copy)).step == 128


@pytest.mark.training
def test_the_best_checkpoint_is_one_of_a_hundred_episodes(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["env=TMaze", *SIZES, "env.corridor_length=2", f"run_dir={folder}"]
    train.main([*options, "total_steps=64"])  # of some twenty episodes
    with pytest.raises(FileNotFoundError, match="holds no best checkpoint"):
        checkpoint.find(folder, which="best")
    train.main([f"resume={folder}", "total_steps=448"])
    assert checkpoint.read_header(checkpoint.find(folder, which="best")).step > 300


@pytest.mark.training
def test_an_interrupted_evaluation_keeps_the_finished_settings(
    a_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder, output = a_run, tmp_path / "it.json"
    output.write_text("an earlier complete file")

    def interrupted(_: object, setting: str) -> None:
        if setting == "noise":
            raise KeyboardInterrupt

    monkeypatch.setattr(episodes, "ablate_memory", interrupted)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        evaluate.main([f"checkpoint={folder}", "episodes=2", "num_envs=2", f"output={output}"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "stopped\n"
    assert output.read_text() == "an earlier complete file"
    document = json.loads((tmp_path / "it.partial.json").read_text())
    assert {name: len(each) for name, each in document["episodes"].items()} == {"on": 2, "zero": 2}
    assert document["config"]["greedy"] is False


def test_a_checkpoint_of_another_size_is_refused(
    a_run: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = a_run
    capsys.readouterr()
    assert "Cannot change" in sentence(capsys, f"resume={folder}", "torso.width=32")
    saved = folder / "config.yaml"
    saved.write_text(saved.read_text().replace("num_layers: ", "num_layers: 1"))
    assert "the weights do not fit" in sentence(capsys, f"checkpoint={folder}", module=evaluate)


@pytest.mark.training
def test_an_evaluation_refuses_options_that_it_does_not_use(
    a_run: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = a_run
    for option, message in (
        ("ppo.learning_rate=1", "choose one of checkpoint"),
        ("torso=gru", "choose one of checkpoint"),
        ("total_steps=5", "choose one of checkpoint"),
        ("torso.num_layers=3", "choose one of torso.window_length, torso.segment_length"),
        ("episdes=1", "did you mean episodes?"),
        ("env.coridor_length=9", "did you mean env.corridor_length?"),
    ):
        capsys.readouterr()
        error = sentence(capsys, f"checkpoint={folder}", option, module=evaluate)
        assert f"{option.split('=')[0]!r} is unknown; {message}" in error
    used = ["device=cpu", "num_threads=1", "policy.precision=float32", "torso.window_length=8"]
    evaluate.main([f"checkpoint={folder}", "episodes=2", "memory=on", "num_envs=2", *used])
    assert "windows reach 16 back" in capsys.readouterr().out


@pytest.mark.training
def test_a_run_that_cannot_continue_keeps_its_configuration(
    a_run: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = a_run
    before = (folder / "config.yaml").read_text()
    for option in ("torso.window_length=8", "seed=7", "ppo.learning_rate=1e38"):
        capsys.readouterr()
        sentence(capsys, f"resume={folder}", "total_steps=640", "ppo.ratio_bound=1e30", option)
        assert (folder / "config.yaml").read_text() == before
    train.main([f"resume={folder}", "total_steps=128", "ppo.gamma=0.5"])
    assert "gamma: 0.5" in (folder / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("module", "option", "message"),
    [
        (evaluate, "memory=", "memory= is unknown; choose one of on, zero, noise"),
        (evaluate, "memory=off", "memory=off is unknown; choose one of on, zero, noise"),
        (evaluate, "seed=-1", "seed=-1 must be 0 or more"),
        (evaluate, "video_steps=0", "video_steps=0 must be 1 or more"),
        (evaluate, "video=x.gif memory=zero", "type memory=on,zero"),
        (train, "resume=", "give a run's folder or a checkpoint in it"),
        (train, "ppo.final_learning_rate=-1", "ppo.final_learning_rate=-1"),
        (train, "ppo.target_kl=-1", "ppo.target_kl=-1"),
        (train, "checkpoint_seconds=nan", "checkpoint_seconds=nan"),
        (train, "seed=-1", "seed=-1"),
    ],
)
def test_a_value_out_of_range_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    module: ModuleType,
    option: str,
    message: str,
) -> None:
    run = "env=TMaze"
    if module is evaluate:
        save_config(compose_config(["env=TMaze"]), tmp_path / "config.yaml")
        run = f"checkpoint={tmp_path}"
    assert message in sentence(capsys, run, *option.split(), module=module)


@pytest.mark.training
def test_an_output_that_cannot_be_written_is_an_error_before_any_episode(
    a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = a_run
    (tmp_path / "file").write_text("")
    for option in (f"output={tmp_path}", f"output={tmp_path / 'file' / 'x.json'}"):
        capsys.readouterr()
        sentence(capsys, f"checkpoint={folder}", "episodes=1000000", option, module=evaluate)


def test_a_full_disk_ends_in_one_sentence_and_keeps_the_checkpoints(
    a_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = a_run

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    capsys.readouterr()
    error = sentence(capsys, f"resume={folder}", "total_steps=256")
    assert "cannot write" in error
    assert "No space left on device" in error
    assert checkpoint.load(folder)["step"] == 64


def test_a_full_disk_leaves_the_configuration_and_the_policy_whole(
    a_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, policy = a_run / "config.yaml", a_run / "policy.safetensors"
    before = {path: path.read_bytes() for path in (config, policy)}
    agent = read_agent(policy)

    def full(path: Path, *_: object, **__: object) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    monkeypatch.setattr(saved_agent, "save_torso", lambda _, path, **__: full(path))
    with pytest.raises(OSError, match=r"cannot write .*config.yaml: No space"):
        save_config(agent.config, config)
    with pytest.raises(OSError, match=r"cannot write .*policy.safetensors: No space"):
        save_policy(agent.build_policy(torch.device("cpu")), policy, description="")
    assert {path: path.read_bytes() for path in (config, policy)} == before


@pytest.mark.training
def test_action_masks_of_an_environment_are_obeyed(tmp_path: Path) -> None:
    train.main(["env=Gymnasium", "env.id=OnlyOneAction-v0", *SIZES, f"run_dir={tmp_path / 'run'}"])
    assert checkpoint.load(tmp_path / "run")["step"] == 192
