import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

import mtxl_rl.envs  # noqa: F401 - registers the environments
from mtxl_rl.envs.memory_maze import kernels
from mtxl_rl.envs.memory_maze.kernels import announcing_compilation, claim, kernel
from mtxl_rl.envs.memory_maze.maze_sizes import SIZES
from mtxl_rl.envs.memory_maze.observe import PATH, draw_paths
from mtxl_rl.envs.memory_maze.single import MemoryMaze
from mtxl_rl.envs.memory_maze.spec import ACTIONS, VARIANTS, MemoryMazeConfig
from mtxl_rl.envs.memory_maze.threads import Threads
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

GOLDEN = Path(__file__).with_name("golden.npz")


def make(num_envs: int = 3, *, seed: int = 0, copy: bool = True, **options: Any) -> Any:  # noqa: ANN401
    options.setdefault("num_threads", 1)
    config = MemoryMazeConfig(**options)
    return MemoryMazeVectorEnv(num_envs, config=config, seed=seed, copy=copy)


@pytest.mark.parametrize(
    ("size", "seed"), [("9x9", 0), ("9x9", 1), ("11x11", 2), ("13x13", 3), ("15x15", 4)]
)
@pytest.mark.usefixtures("original_textures")
def test_a_walk_is_that_of_the_original(size: str, seed: int, psnr: Any) -> None:  # noqa: ANN401
    golden = np.load(GOLDEN)
    name = f"walk_{size}_{seed}"
    env = make(1, size=size, seed=seed)
    pictures = [env.reset()[0][0]]
    np.testing.assert_array_equal(env.walls()[0], golden[f"{name}_walls"])
    rewards, positions = [], [env.walkers()[0]]
    for step, action in enumerate(golden[f"{name}_actions"], start=1):
        picture, reward, *_ = env.step(np.array([action]))
        rewards.append(reward[0])
        positions.append(env.walkers()[0])
        if step % 20 == 0:
            pictures.append(picture[0])
    np.testing.assert_array_equal(rewards, golden[f"{name}_rewards"])
    assert np.abs(np.array(positions) - golden[f"{name}_positions"])[:, :3].max() < 1e-3
    values = [psnr(*pair) for pair in zip(pictures, golden[f"{name}_pictures"], strict=True)]
    assert np.mean(values) > 42
    assert min(values) > 33


def test_an_episode_is_truncated_on_time_and_the_next_step_resets() -> None:
    env = make(2, episode_length=5)
    env.reset()
    for step in range(1, 6):
        _, _, terminated, truncated, _ = env.step(np.array([1, 1]))
        assert not terminated.any()
        assert truncated.tolist() == [step == 5] * 2
    before = env.walls()
    _, rewards, _, truncated, _ = env.step(np.array([1, 1]))
    assert not truncated.any()
    assert not rewards.any()
    assert (env.walls() != before).any()


@pytest.mark.parametrize(
    ("size", "length"), [("9x9", 1000), ("11x11", 2000), ("13x13", 3000), ("15x15", 4000)]
)
def test_episodes_are_as_long_as_the_originals(size: str, length: int) -> None:
    assert MemoryMazeConfig(size=size).steps_per_episode == length
    assert MemoryMazeConfig(size=size, control_freq=40.0).steps_per_episode == 10 * length


def test_environment_i_has_the_episodes_of_seed_plus_i() -> None:
    together = make(3, seed=4)
    pictures, _ = together.reset()
    for index in range(3):
        alone, _ = make(1, seed=4 + index).reset()
        np.testing.assert_array_equal(alone[0], pictures[index])


def test_a_list_of_seeds_and_a_masked_seed_are_per_environment() -> None:
    env = make(3)
    env.reset(seed=[7, 8, 9])
    expected, _ = make(1, seed=8).reset()
    np.testing.assert_array_equal(env.observe()[1], expected[0])
    mask = np.array([True, False, False])
    pictures, _ = env.reset(seed=8, options={"reset_mask": mask})
    np.testing.assert_array_equal(pictures[0], expected[0])
    np.testing.assert_array_equal(pictures[1], expected[0])


def test_the_number_of_threads_changes_nothing() -> None:
    env, threaded = make(7), make(7, num_threads=3)
    env.reset()
    threaded.reset()
    rng = np.random.default_rng(0)
    for _ in range(10):
        actions = rng.integers(6, size=7)
        for a, b in zip(env.step(actions)[:4], threaded.step(actions)[:4], strict=True):
            np.testing.assert_array_equal(a, b)
    threaded.close()
    threaded.close()


@kernel
def _count(rows: NDArray[np.int64], done: NDArray[np.int64]) -> None:
    row = claim(rows)
    while row >= 0:
        done[row] += 1
        row = claim(rows)


def test_all_rows_are_done_once_and_an_error_in_a_thread_is_raised() -> None:
    threads = Threads(1000, num_threads=3)
    done = np.zeros(1000, np.int64)
    for _ in range(20):
        threads.run(_count, done)
    assert (done == 20).all()

    def fail(rows: NDArray[np.int64]) -> None:
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(f"rows {rows}")

    with pytest.raises(RuntimeError, match="rows"):
        threads.run(fail)
    threads.run(_count, done)
    assert (done == 21).all()
    threads.close()


def test_without_copy_the_batch_is_the_same_memory() -> None:
    env = make(2, copy=False)
    first, _ = env.reset()
    second, *_ = env.step(np.array([1, 2]))
    assert first is second


def test_the_bounds_of_a_batch_take_no_memory_and_are_those_of_gymnasium() -> None:
    for options in ({}, {"extra_observations": True}):
        env = make(3, **options)
        space = env.observation_space
        assert space == batch_space(env.single_observation_space, 3)
        assert env.reset()[0] in space
        assert space.sample() in space
        for box in space.values() if options else [space]:
            assert box.low.strides[0] == box.bounded_above.strides[0] == 0


def test_continuous_actions_do_what_the_discrete_ones_name() -> None:
    discrete, continuous = make(1), make(1, discrete_actions=False)
    discrete.reset()
    continuous.reset()
    for action in (1, 1, 4, 2, 5, 3, 0):
        a = discrete.step(np.array([action]))[0]
        b = continuous.step(np.array([ACTIONS[action]]))[0]
        np.testing.assert_array_equal(a, b)


def test_a_target_is_rewarded_once_and_then_another_one_is_prompted() -> None:
    env = make(1)
    env.reset()
    target = env.current_targets()[0]
    before = int(env._current[0])
    env._position[0, :2] = target
    _, rewards, *_ = env.step(np.array([0]))
    assert rewards[0] == 1
    assert env._current[0] != before
    _, rewards, *_ = env.step(np.array([0]))
    assert rewards[0] == 0


def test_a_sphere_in_the_mazes_middle_is_touched_by_the_first_step_of_the_original() -> None:
    for quirks, expected in ((True, 1.0), (False, 0.0)):
        env = make(1, original_quirks=quirks)
        env.reset()
        env._targets[0, env._current[0]] = 0.0
        env._position[0, :2] = env._targets[0, env._current[0] - 1] + [0.0, 0.9]
        env._touched_at_start[0] = (1 << int(env._current[0])) * quirks
        assert env.step(np.array([0]))[1][0] == expected


def test_an_environment_branches_into_another_vector_and_a_single_one() -> None:
    env = make(3, seed=11)
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(5):
        env.step(rng.integers(6, size=3))
    state = env.get_env_state(1)
    other, single = make(2, seed=99), MemoryMaze(config=MemoryMazeConfig(num_threads=1), seed=5)
    other.reset()
    other.set_env_state(0, state)
    single.set_state(state)
    np.testing.assert_array_equal(other.observe()[0], env.observe()[1])
    for _ in range(5):
        actions = rng.integers(6, size=3)
        ours = env.step(actions)[0][1]
        np.testing.assert_array_equal(other.step(actions[1:])[0][0], ours)
        np.testing.assert_array_equal(single.step(actions[1])[0], ours)


def test_extra_observations_locate_everything() -> None:
    env = make(4, extra_observations=True, seed=3)
    observations, _ = env.reset()
    layout, position = observations["maze_layout"], observations["agent_pos"]
    assert layout.shape == (4, 9, 9)
    for index in range(4):
        column, row = position[index].astype(int)
        assert layout[index, row, column] == 1
        np.testing.assert_array_equal(layout[index, ::-1] == 0, env.walls()[index, 1:-1, 1:-1])
    direction = observations["agent_dir"]
    to_target = observations["target_pos"] - position
    ahead = (direction * to_target).sum(axis=1)
    right = direction[:, 1] * to_target[:, 0] - direction[:, 0] * to_target[:, 1]
    np.testing.assert_allclose(observations["target_vec"], np.stack([right, ahead], 1), atol=1e-12)
    moved = env.step(np.array([1] * 4))[0]["agent_pos"] - position
    assert ((moved * direction).sum(axis=1) > 0).all()


def test_seen_observations_locate_what_was_in_view() -> None:
    env = make(4, extra_observations=True, seen_observations=True, seed=3, episode_length=40)
    observations, _ = env.reset()
    rng, rows = np.random.default_rng(0), np.arange(4)
    was_seen, seen = np.zeros((4, 3), np.bool_), []
    for step in range(100):
        is_start = step % 41 == 0
        was_seen = (was_seen & (not is_start)) | (env.target_ages() == 0)
        expected = np.where(was_seen[..., None], observations["targets_pos"], -1)
        np.testing.assert_array_equal(observations["seen_targets_pos"], expected)
        visible = np.where(env.target_ages()[..., None] == 0, observations["targets_vec"], 0.0)
        np.testing.assert_array_equal(observations["visible_targets_vec"], visible)
        vectors = np.where(was_seen[..., None], observations["targets_vec"], 0.0)
        np.testing.assert_array_equal(observations["seen_targets_vec"], vectors)
        target = expected[rows, env.motion().current]
        np.testing.assert_array_equal(observations["seen_target_pos"], target)
        seen.append(was_seen.mean())
        observations = env.step(rng.integers(6, size=4))[0]
    assert seen[0] < max(seen)


def test_the_ways_back_to_the_start_and_to_the_last_pose_are_observed() -> None:
    env = make(4, extra_observations=True, seen_observations=True, seed=3, episode_length=40)
    observations, _ = env.reset()
    rng = np.random.default_rng(0)
    for step in range(100):
        pose = observations["agent_pos"], observations["agent_dir"]
        if step % 41 == 0:
            first = last = pose
        ahead = pose[1]
        right = np.stack([ahead[:, 1], -ahead[:, 0]], axis=-1)
        expected_leaves = {
            "first_vec": first[0] - pose[0],
            "first_dir": first[1],
            "last_vec": last[0] - pose[0],
            "last_dir": last[1],
        }
        last = pose
        for name, expected in expected_leaves.items():
            parts = [(axis * expected).sum(axis=1) for axis in (right, ahead)]
            np.testing.assert_allclose(observations[name], np.stack(parts, axis=1), atol=1e-12)
        observations = env.step(rng.integers(6, size=4))[0]


def test_seen_observations_are_in_the_state() -> None:
    env = make(2, extra_observations=True, seen_observations=True, seed=3)
    env.reset()
    for _ in range(30):
        env.step(np.array([2, 4]))
    other = make(2, extra_observations=True, seen_observations=True, seed=4)
    other.set_state(env.get_state())
    for _ in range(30):
        ours, others = (each.step(np.array([1, 3]))[0] for each in (env, other))
        for name in ("seen_targets_pos", "first_vec", "first_dir", "last_vec", "last_dir"):
            np.testing.assert_array_equal(ours[name], others[name])


def test_seen_observations_need_the_extra_ones() -> None:
    with pytest.raises(ValueError, match=r"add env\.extra_observations=true"):
        MemoryMazeConfig(seen_observations=True)


def test_the_path_is_a_shortest_one() -> None:
    layout = np.array([[[1, 1, 1], [1, 0, 1], [1, 0, 1]]], np.uint8)
    draw_paths(0, 1, layout, np.array([[0.5, 2.5]]), np.array([[2.5, 1.5]]))
    expected = [[PATH, PATH, PATH], [PATH, 0, PATH], [PATH, 0, 1]]
    np.testing.assert_array_equal(layout[0], expected)


def test_every_size_and_variant_is_registered() -> None:
    for size in SIZES:
        for variant in VARIANTS:
            assert f"mtxl_rl/MemoryMaze-{size}{variant}-v0" in gymnasium.registry


@pytest.mark.filterwarnings("ignore:.*(minimum|maximum) value is -?infinity")
@pytest.mark.parametrize("variant", ["", "-Vis", "-Oracle-ExtraObs", "-HiFreq", "-6CL"])
def test_gymnasiums_checker_passes(variant: str) -> None:
    env = gymnasium.make(f"mtxl_rl/MemoryMaze-9x9{variant}-v0", num_threads=1)
    check_env(env.unwrapped)
    env.close()


def test_gymnasium_makes_the_vector_environment() -> None:
    env: Any = gymnasium.make_vec(
        "mtxl_rl/MemoryMaze-9x9-v0",
        num_envs=2,
        vectorization_mode="vector_entry_point",
        num_threads=1,
        seed=3,
    )
    assert isinstance(env.unwrapped, MemoryMazeVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    expected, _ = make(2, seed=3).reset()
    np.testing.assert_array_equal(env.reset()[0], expected)
    env.close()


def test_a_finished_single_environment_requires_a_reset() -> None:
    env = MemoryMaze(config=MemoryMazeConfig(num_threads=1, episode_length=1))
    env.reset(seed=0)
    assert env.step(0)[2:4] == (False, True)
    with pytest.raises(ValueError, match=r"after the episode's end: call reset\(\) first"):
        env.step(0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "10x10"}, "env.size=10x10 is unknown; choose one of 1"),
        ({"camera_resolution": 32}, "env.camera_resolution=32 must be from 64 to 512"),
        ({"control_freq": 3.0}, "env.control_freq=3.0 must divide 200"),
        ({"control_freq": 0.0}, "env.control_freq=0.0 must divide 200"),
        ({"num_threads": -1}, r"env.num_threads=-1 must be 0 \(one for each core\)"),
        ({"episode_length": -1}, r"env.episode_length=-1 must be 0 \(the original's\)"),
    ],
)
def test_an_error_about_an_option_lists_what_is_legal(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MemoryMazeConfig(**options)


def test_a_size_may_be_a_number() -> None:
    assert MemoryMazeConfig(size="11").size == "11x11"


@pytest.mark.parametrize("actions", [[0], [0, 1, 6], [0, -1, 2], [0.0, 1.0, 2.0], [[0], [1], [2]]])
def test_actions_of_another_shape_or_range_are_refused(actions: list[Any]) -> None:
    env = make(3)
    env.reset()
    with pytest.raises(ValueError, match=r"give whole numbers from 0 to 5 of shape \(3,\)"):
        env.step(np.array(actions))


@pytest.mark.parametrize("actions", [[[0.0, 1.1]], [[np.nan, 0.0]], [0.0, 0.0], [["a", "b"]]])
def test_continuous_actions_out_of_range_are_refused(actions: list[Any]) -> None:
    env = make(1, discrete_actions=False)
    env.reset()
    with pytest.raises(ValueError, match=r"give numbers from -1 to 1 of shape \(1, 2\)"):
        env.step(np.array(actions))


def test_calls_in_the_wrong_order_are_refused() -> None:
    env = make(2)
    with pytest.raises(ValueError, match=r"step\(\) came before the first reset"):
        env.step(np.array([0, 0]))
    with pytest.raises(ValueError, match="reset_mask came before the first reset"):
        env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ValueError, match=r"\['maze'\] are unknown; Memory Maze takes reset_mask"):
        env.reset(options={"maze": 1})
    env.reset()
    env.close()
    for call in (lambda: env.step(np.array([0, 0])), env.reset, env.get_state):
        with pytest.raises(ValueError, match=r"after close\(\): make a new environment"):
            call()


@pytest.mark.parametrize("seed", [-1, 2**32, [1], [1, 2, 3]])
def test_illegal_seeds_are_refused(seed: Any) -> None:  # noqa: ANN401
    with pytest.raises(ValueError, match=r"for 2 environments.* pass (an int|one)"):
        make(2).reset(seed=seed)


def test_a_foreign_state_is_refused() -> None:
    env = make(2)
    env.reset()
    with pytest.raises(ValueError, match="is of another environment and this Memory Maze is"):
        env.set_state({"cue": np.zeros(2)})
    with pytest.raises(ValueError, match="make this one like the saved one"):
        make(2, size="11x11").set_state(env.get_state())
    with pytest.raises(ValueError, match="has 2 environments and 3 are to be restored"):
        make(3).set_state(env.get_state())


def test_a_pose_outside_of_the_maze_is_refused() -> None:
    env = make(1)
    env.reset()
    with pytest.raises(ValueError, match=r"must lie within 9 m of the maze's centre"):
        env.render_pose(0, x=9.5, y=0.0, heading=0.0)


@pytest.mark.parametrize(
    ("seconds", "message"),
    [(7.4, "compiling the engine; once, it is cached ... 7 s\n"), (1.9, "")],
)
def test_compiling_is_announced_if_it_takes_seconds(
    seconds: float,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Timer:
        """Ends at its start if the compilation takes longer than its delay."""

        daemon = False

        def __init__(self, delay: float, announce: Callable[[], None]) -> None:
            self.is_due, self.announce = delay < seconds, announce

        def start(self) -> None:
            if self.is_due:
                self.announce()

        def cancel(self) -> None:
            pass

    readings = iter((100.0, 100.0 + seconds))
    clock = SimpleNamespace(perf_counter=lambda: next(readings))
    monkeypatch.setattr(kernels, "time", clock)
    monkeypatch.setattr(kernels, "threading", SimpleNamespace(Event=threading.Event, Timer=Timer))
    with announcing_compilation("the engine"):
        pass
    assert capsys.readouterr().err == message


@pytest.mark.training
def test_running_it_loads_neither_mujoco_nor_torch() -> None:
    worker = str(Path(__file__).with_name("walk_worker.py"))
    run = subprocess.run([sys.executable, worker], capture_output=True, text=True, check=True)
    packages = set(json.loads(run.stdout)["packages"])
    assert packages & {"torch", "mujoco", "dm_control", "PIL", "memory_maze"} == set()
