"""Against the original package itself; `golden.npz` holds a part of it for machines without."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from mtxl_rl.envs.memory_maze.careful import careful
from mtxl_rl.envs.memory_maze.layout import (
    FREE,
    WALL_TEXTURES,
    EpisodeLayout,
    EpisodeStream,
    spawn_height,
)
from mtxl_rl.envs.memory_maze.maze_sizes import SIZES
from mtxl_rl.envs.memory_maze.physics import move_walker, new_scratch
from mtxl_rl.envs.memory_maze.spec import (
    ACTIONS,
    BALL_RADIUS,
    TARGET_COLORS,
    MemoryMazeConfig,
)
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv
from mtxl_rl.envs.memory_maze_original import original_packages, simulation

pytestmark = [pytest.mark.original, pytest.mark.usefixtures("yardstick")]
# A walk on 9x9, seed 1, that turns what the first substep is wrong by, 7e-6 m, into 3e-2 m.
SCRAPING_WALK = (
    "334355145445111233333511111112224445314111154341122444111512222441115133554"
    "511114552441455255551151111153411011511111125551544451141052151140222522222"
    "224111151415141511415142222222244051251111114511544515333333343423333511411"
    "324151415413332355110111150415154552223222244111115142222222232241115251412"
)
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ExtraObs-Vis": (
        {"global_observables": True, "good_visibility": True},
        {"extra_observations": True, "good_visibility": True},
    ),
    "Oracle-ExtraObs": (
        {"global_observables": True, "show_path": True},
        {"extra_observations": True, "show_path": True},
    ),
    "Top": (
        {"top_camera": True, "camera_resolution": 256, "image_only_obs": True},
        {"top_camera": True, "camera_resolution": 256},
    ),
    "HD": (
        {"camera_resolution": 256, "image_only_obs": True},
        {"camera_resolution": 256},
    ),
    "HiFreq": (
        {"control_freq": 40, "image_only_obs": True},
        {"control_freq": 40.0},
    ),
    "6CL": (
        {"randomize_colors": True, "image_only_obs": True},
        {"randomize_colors": True},
    ),
}


def episodes(size: str, *, seed: int) -> EpisodeStream:
    return EpisodeStream(
        SIZES[size],
        grid=SIZES[size].grid,
        seed=seed,
        target_height=0.0,
        randomize_colors=False,
        original_quirks=True,
    )


def original_mazes(size: str, *, seed: int) -> Iterator[Any]:
    """The original's task after each reset, without compiling a model for it.

    The spawn and the heading, which are drawn after compiling, are drawn here and left out.
    """
    original_packages.import_packages()
    random = np.random.RandomState(seed)
    task = simulation._build_task(simulation.SIZES[size], random=random)
    while True:
        task.initialize_episode_mjcf(random)
        for entity in task.root_entity.iter_entities():
            entity.initialize_episode_mjcf(random)
        yield task
        random.randint(0, len(task._maze_arena.spawn_positions))
        random.uniform(-1, 1)


def assert_same_maze(episode: EpisodeLayout, task: Any) -> None:  # noqa: ANN401
    from dm_control import mjcf

    arena = task._maze_arena
    layer = np.array(arena.maze.entity_layer)
    np.testing.assert_array_equal(
        episode.maze.wall_block == FREE, ~np.isin(layer, list("*0123456789"))
    )
    for character, texture in arena._current_wall_texture.items():
        cells = layer == character
        assert (episode.wall_texture[cells] == WALL_TEXTURES.index(texture.name)).all()
    frames = [mjcf.get_attachment_frame(target.mjcf_model).pos for target in task._targets]
    np.testing.assert_array_equal(episode.targets, np.array(frames)[:, :2])
    assert episode.current == task._current_target_ix
    spawns = [tuple(place[:2]) for place in arena.spawn_positions]
    assert episode.spawn in spawns


@pytest.mark.parametrize("size", ["9x9", "11x11", "13x13", "15x15"])
def test_layouts_textures_and_targets_are_the_originals(size: str) -> None:
    first = list(simulation.SIZES).index(size) * 4
    for seed in range(first, first + 4):
        stream = episodes(size, seed=seed)
        for task, _ in zip(original_mazes(size, seed=seed), range(3), strict=False):
            assert_same_maze(stream.next_episode(), task)
            stream.first_step_is_over()  # without a model, no sphere is ever touched


@pytest.mark.slow
@pytest.mark.parametrize("size", ["9x9", "11x11", "13x13", "15x15"])
def test_two_hundred_resets_are_the_originals(size: str) -> None:
    for seed in range(100, 150):
        stream = episodes(size, seed=seed)
        for task, _ in zip(original_mazes(size, seed=seed), range(4), strict=False):
            assert_same_maze(stream.next_episode(), task)
            stream.first_step_is_over()  # without a model, no sphere is ever touched


@pytest.mark.parametrize("size", ["9x9", "15x15"])
def test_spawns_and_headings_are_the_originals(size: str, yardstick: Callable[..., Any]) -> None:
    for seed in range(2):
        reference, stream = yardstick(size, seed=seed), episodes(size, seed=seed)
        for _ in range(3):
            reference.env.reset()
            episode = stream.next_episode()
            assert_same_maze(episode, reference.task)
            position = reference.position()
            assert tuple(position[:2]) == episode.spawn
            # From the maze's middle all ten rays are as long, and rounding decides in the original.
            if episode.spawn != (0.0, 0.0):
                assert position[3] == pytest.approx(episode.heading, abs=1e-12)
                # Whether the ball touches the floor in the first substep is decided by rounding.
                height = (
                    reference.data.geom_xpos[reference.env._simulation._ball_id, 2] - BALL_RADIUS
                )
                assert spawn_height(episode.heading) == height


@pytest.mark.parametrize(
    ("size", "seed", "num_steps"),
    [
        *(("9x9", seed, 300) for seed in range(6)),
        *(("15x15", seed, 120) for seed in range(2)),
    ],
)
def test_walks_are_the_originals(
    size: str, seed: int, num_steps: int, yardstick: Callable[..., Any], psnr: Callable[..., float]
) -> None:
    reference = yardstick(size, seed=seed)
    ours = MemoryMazeVectorEnv(1, config=MemoryMazeConfig(size=size, num_threads=1), seed=seed)
    values = [psnr(ours.reset()[0][0], reference.env.reset()[0])]
    # At MuJoCo's own tolerance, 1e-8, a walk that scrapes along a wall drifts from its solution.
    reference.model.opt.tolerance = 0
    rng = np.random.default_rng(seed)
    for _ in range(num_steps):
        action = careful(ours) if rng.random() > 0.15 else rng.integers(6, size=1)
        picture, rewards, *_ = ours.step(action)
        their_picture, reward, *_ = reference.env.step(int(action[0]))
        assert rewards[0] == reward
        assert np.abs(ours.walkers()[0] - reference.position())[:2].max() < 1e-2
        values.append(psnr(picture[0], their_picture))
    assert np.mean(values) > 42
    assert min(values) > 33


def test_a_walk_that_scrapes_along_walls_is_the_originals(yardstick: Callable[..., Any]) -> None:
    reference = yardstick("9x9", seed=1)
    ours = MemoryMazeVectorEnv(1, config=MemoryMazeConfig(num_threads=1), seed=1)
    ours.reset()
    reference.env.reset()
    reference.model.opt.tolerance = 0
    for action in map(int, SCRAPING_WALK):
        assert ours.step(np.array([action]))[1][0] == reference.env.step(action)[1]
        assert np.abs(ours.walkers()[0] - reference.position())[:2].max() < 1e-4


def test_single_steps_are_mujocos_at_a_tight_tolerance(yardstick: Callable[..., Any]) -> None:
    errors = []
    for seed in (0, 7):
        reference = yardstick("9x9", seed=seed)
        reference.env.reset()
        reference.model.opt.tolerance = 0
        episode = episodes("9x9", seed=seed).next_episode()
        rng = np.random.default_rng(seed)
        action = 1
        for _ in range(300):
            if rng.random() < 0.3:
                action = int(rng.integers(1, len(ACTIONS)))
            position, velocity = reference.position(), reference.velocity()
            reference.env.step(action)
            move_walker(
                position,
                velocity,
                *ACTIONS[action],
                50,
                episode.maze.box_of_cell,
                episode.maze.boxes,
                episode.targets,
                0.0,
                new_scratch(),
            )
            errors.append(np.abs(position - reference.position())[:4].max())
    assert np.median(errors) < 1e-7
    assert np.quantile(errors, 0.99) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_observes_what_the_original_does(
    name: str, psnr: Callable[..., float]
) -> None:
    their_options, our_options = VARIANTS[name]
    original_packages.import_packages()
    from memory_maze import tasks

    reference = tasks.memory_maze_9x9(seed=7, **their_options)
    config = MemoryMazeConfig(num_threads=1, **our_options)
    ours = MemoryMazeVectorEnv(1, config=config, seed=7)
    expected, observed = reference.reset().observation, ours.reset()[0]
    for action in (1, 1, 4, 1, 2, 1):
        compare(expected, observed, psnr)
        expected = reference.step(action).observation
        observed, *_ = ours.step(np.array([action]))
    reference.close()


def compare(expected: Any, observed: Any, psnr: Callable[..., float]) -> None:  # noqa: ANN401
    if not isinstance(expected, dict):
        expected, observed = {"image": expected}, {"image": observed}
    assert set(expected) == set(observed)
    for key, value in expected.items():
        assert observed[key][0].shape == np.shape(value), key
        assert observed[key].dtype == np.asarray(value).dtype, key
        if key == "image":
            assert psnr(observed[key][0], value) > 36
        else:
            np.testing.assert_allclose(observed[key][0], value, atol=1e-4)


def test_the_colours_are_the_originals() -> None:
    original_packages.import_packages()
    from memory_maze import maze

    np.testing.assert_array_equal(TARGET_COLORS, maze.TARGET_COLORS)
