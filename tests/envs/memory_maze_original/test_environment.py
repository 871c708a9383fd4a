import ctypes.util
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze_original import (
    MemoryMazeOriginal,
    MemoryMazeOriginalConfig,
    make_memory_maze_original,
    original_packages,
)

pytestmark = pytest.mark.original
needs_packages = pytest.mark.skipif(
    importlib.util.find_spec("memory_maze") is None, reason="memory-maze is not installed"
)

# A control step of either environment: the frame, the reward, whether the episode's time is up.
Step = tuple[NDArray[np.uint8], float, bool]


class Untouched:
    """The package's own environment behind the few methods that the comparison drives."""

    def __init__(self, size: str, *, seed: int) -> None:
        original_packages.import_packages()
        from memory_maze import tasks

        self.outer = getattr(tasks, f"memory_maze_{size}")(seed=seed, image_only_obs=True)
        self.task = self.outer.task

    def limit_time(self, seconds: float) -> None:
        """End episodes early."""
        self._composer()._time_limit = seconds

    def _composer(self) -> Any:  # noqa: ANN401
        env = self.outer
        while "env" in vars(env):
            env = env.env
        return env

    @property
    def physics(self) -> Any:  # noqa: ANN401
        """The current episode's."""
        return self._composer().physics

    def reset(self) -> NDArray[np.uint8]:
        """The first frame of the next episode."""
        return np.array(self.outer.reset().observation)

    def step(self, action: int) -> Step:
        """The frame, the reward, the end."""
        timestep = self.outer.step(action)
        assert timestep.discount == 1.0
        return np.array(timestep.observation), timestep.reward, timestep.last()

    def close(self) -> None:
        """Free it."""
        self.outer.close()


class Ours:
    """Our environment behind the same methods."""

    def __init__(self, size: str, *, seed: int) -> None:
        self.env = MemoryMazeOriginal(size=size, seed=seed)
        self.task = self.env._simulation._task

    def limit_time(self, seconds: float) -> None:
        """End episodes early."""
        self.env._simulation.time_limit_seconds = seconds

    @property
    def physics(self) -> Any:  # noqa: ANN401
        """The current episode's."""
        return self.env._simulation._physics

    def reset(self) -> NDArray[np.uint8]:
        """The first frame of the next episode."""
        return self.env.reset()[0]

    def step(self, action: int) -> Step:
        """The frame, the reward, the end."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        assert not terminated
        assert info == {}
        return obs, reward, truncated

    def close(self) -> None:
        """Free it."""
        self.env.close()


Play = Callable[[Any], list[Any]]


def compare(play: Play, *, size: str, seed: int) -> list[Any]:
    """Play the same in both environments, one after the other: they share an OpenGL thread."""
    records = []
    for make in (Untouched, Ours):
        env = make(size, seed=seed)
        try:
            records.append(play(env))
        finally:
            env.close()
    for index, (expected, got) in enumerate(zip(*records, strict=True)):
        np.testing.assert_equal(got, expected, err_msg=f"record {index}")
    return records[0]


def put_ball(env: Any, *, target: int, distance: float) -> None:  # noqa: ANN401
    """Put the ball at a distance east of a target, in the raw state that both share."""
    import mujoco

    physics, task = env.physics, env.task
    model, data = physics.model.ptr, physics.data.ptr
    centre = data.geom_xpos[physics.bind(task._targets[target].geom).element_id]
    for joint, value in zip(
        task._walker._root_joints, centre + np.array([distance, 0, 0]), strict=True
    ):
        index = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, joint.full_identifier)
        data.qpos[model.jnt_qposadr[index]] = value
    mujoco.mj_forward(model, data)


def walk(env: Any, num_steps: int) -> list[Any]:  # noqa: ANN401
    """Mostly forward, into the walls and along them."""
    rng, action, records = np.random.default_rng(0), 1, []
    for _ in range(num_steps):
        if rng.random() < 0.3:
            action = int(rng.choice([0, 1, 1, 1, 2, 3, 4, 5]))
        records.append(env.step(action))
    return records


# Seed 68 puts the current target at the maze's centre, where the walker is while the original
# checks the first contacts: it counts as touched, is invisible in the first frame, and pays
# immediately.
FREE_REWARD_SEED = 68


@needs_packages
def test_the_first_frames_and_rewards_equal_those_of_the_package() -> None:
    records = compare(lambda env: [env.reset(), *walk(env, 3)], size="9x9", seed=FREE_REWARD_SEED)
    assert records[1][1] == 1.0


@needs_packages
@pytest.mark.slow
def test_episodes_equal_those_of_the_package() -> None:
    def play(env: Any) -> list[Any]:  # noqa: ANN401
        env.limit_time(2.0 - 1e-3)
        records = [env.reset(), *walk(env, 8)]  # the free reward, and the end by time
        # Resets in the middle of an episode and right after a reset: the target that counts as
        # touched is skipped when the next episode's target is drawn.
        return [*records, env.reset(), *walk(env, 2), env.reset(), env.reset(), *walk(env, 2)]

    records = compare(play, size="9x9", seed=FREE_REWARD_SEED)
    assert records[1][1] == 1.0
    assert [last for _, _, last in records[1:9]] == [False] * 7 + [True]


@needs_packages
@pytest.mark.slow
def test_touching_targets_equals_the_package() -> None:
    def play(env: Any) -> list[Any]:  # noqa: ANN401
        records: list[Any] = [env.reset(), *walk(env, 20)]
        for distance in (0.7, 0.85, 0.95):
            for target in range(3):
                put_ball(env, target=target, distance=distance)
                records += walk(env, 2)
        return records

    records = compare(play, size="9x9", seed=7)
    rewards = [reward for _, reward, _ in records[21:]]
    assert 1 <= sum(rewards) < len(rewards)


@needs_packages
@pytest.mark.slow
@pytest.mark.parametrize(("size", "num_steps"), [("9x9", 60), ("15x15", 12)])
def test_long_walks_equal_those_of_the_package(size: str, num_steps: int) -> None:
    compare(lambda env: [env.reset(), *walk(env, num_steps)], size=size, seed=11)


@needs_packages
@pytest.mark.slow
def test_an_episode_has_as_many_steps_as_the_time_limit_allows() -> None:
    env = MemoryMazeOriginal(size="9x9", seed=0)
    env.reset()
    simulation = env._simulation
    simulation._frame = lambda: np.zeros((64, 64, 3), np.uint8)  # type: ignore[method-assign]
    ends = [env.step(0)[3] for _ in range(1000)]
    env.close()
    assert ends == [False] * 999 + [True]


@needs_packages
@pytest.mark.slow
def test_gymnasiums_checker_passes() -> None:
    env = MemoryMazeOriginal(seed=0, render_mode="rgb_array")
    check_env(env, skip_render_check=True)
    env.close()


@needs_packages
@pytest.mark.slow
def test_a_seed_starts_the_same_stream_anew_and_no_seed_continues_it() -> None:
    env = MemoryMazeOriginal(seed=2)
    first, second = env.reset()[0], env.reset()[0]
    assert not np.array_equal(first, second)
    other = MemoryMazeOriginal()
    np.testing.assert_equal(other.reset(seed=2)[0], first)
    # Two in one process: each draws in a context of its own.
    np.testing.assert_equal(env.reset(seed=2)[0], first)
    np.testing.assert_equal(other.reset()[0], second)
    other.close()
    np.testing.assert_equal(env.reset()[0], second)
    env.close()
    env.close()


@needs_packages
@pytest.mark.slow
def test_the_vector_has_one_stream_per_environment() -> None:
    vector = make_memory_maze_original(size="9x9", num_envs=2, seed=2, num_workers=1)
    single = MemoryMazeOriginal(seed=3)
    try:
        assert vector.metadata["autoreset_mode"] == AutoresetMode.NEXT_STEP
        np.testing.assert_equal(vector.reset()[0][1], single.reset()[0])
        obs, rewards, terminated, truncated, infos = vector.step(np.array([0, 1]))
        np.testing.assert_equal(obs[1], single.step(1)[0])
        assert obs.shape == (2, 64, 64, 3)
        assert rewards.tolist() == [0, 0]
        assert not (terminated | truncated).any()
        assert infos == {}
    finally:
        vector.close()
        single.close()


@needs_packages
@pytest.mark.slow
@pytest.mark.parametrize("backend", ["egl", "osmesa"])
def test_nothing_is_printed_even_if_nobody_closes(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not original_packages._opens(backend):
        pytest.skip(f"no {backend} here")
    monkeypatch.setenv("MUJOCO_GL", backend)
    monkeypatch.delenv("PYOPENGL_PLATFORM", raising=False)
    worker = str(Path(__file__).with_name("unclosed_worker.py"))
    done = subprocess.run([sys.executable, worker], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "(64, 64, 3)\n", "")


def test_importing_the_environments_imports_none_of_the_packages(
    imported_packages: Callable[..., set[str]],
) -> None:
    heavy = {"torch", "mujoco", "dm_control", "labmaze", "gym", "OpenGL"}
    assert imported_packages("mtxl_rl.envs.memory_maze_original") & heavy == set()


def test_a_missing_package_names_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"pip install 'mtxl_rl\[memory-maze-original\]'"):
        make_memory_maze_original(size="9x9", num_envs=1, seed=0)
    sentence = original_packages.missing_package_message("labmaze", python=(3, 13))
    assert "no wheels for Python 3.13 and later" in sentence
    assert "3.13" not in original_packages.missing_package_message("labmaze", python=(3, 12))


@pytest.mark.parametrize(
    ("backend", "sentence"),
    [
        ("", "neither EGL nor OSMesa can be opened.*libegl1 libegl-mesa0 libgl1.*libosmesa6"),
        ("egl", "MUJOCO_GL=egl, but EGL cannot be opened.*libegl1 libegl-mesa0 libgl1"),
        ("osmesa", "MUJOCO_GL=osmesa, but the library OSMesa is not installed.*libosmesa6"),
        ("off", "MUJOCO_GL=off .* one of egl, osmesa, glfw"),
    ],
)
def test_a_missing_opengl_library_names_its_package(
    backend: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctypes.util, "find_library", lambda _: None)
    monkeypatch.setattr(original_packages.ctypes, "CDLL", _no_library)
    monkeypatch.setattr(original_packages.platform, "system", lambda: "Linux")
    monkeypatch.setenv("MUJOCO_GL", backend)
    with pytest.raises(RuntimeError, match=sentence):
        original_packages.choose_gl_backend()


def _no_library(name: str) -> None:
    raise OSError(f"{name}: cannot open shared object file")


def test_without_egl_osmesa_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(original_packages, "_opens", lambda backend: backend == "osmesa")
    monkeypatch.setattr(original_packages.platform, "system", lambda: "Linux")
    assert original_packages.choose_gl_backend() == "osmesa"
    assert original_packages.os.environ["MUJOCO_GL"] == "osmesa"


def test_settings_take_short_sizes_and_refuse_unknown_ones() -> None:
    assert MemoryMazeOriginalConfig(size="15").size == "15x15"
    assert MemoryMazeOriginalConfig(size="11x11").size == "11x11"
    with pytest.raises(ValueError, match=r"env\.size=10x10 is unknown; choose one of 1"):
        MemoryMazeOriginalConfig(size="10")
    with pytest.raises(ValueError, match=r"env\.num_workers=-1"):
        MemoryMazeOriginalConfig(num_workers=-1)
    with pytest.raises(ValueError, match=r"env\.size=10x10 is unknown; choose one of"):
        make_memory_maze_original(size="10x10", num_envs=1, seed=0)
