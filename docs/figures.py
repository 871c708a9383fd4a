"""The pictures of the documentation.

`python docs/figures.py` makes those in docs/images; the build of the site makes one for each
built-in task.
"""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mtxl_rl.agent import Agent
from mtxl_rl.envs.memory_maze.explorer import Explorer
from mtxl_rl.envs.memory_maze.observe import grid_positions
from mtxl_rl.envs.memory_maze.spec import TARGET_COLORS, MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv
from mtxl_rl.envs.registry import evaluation_env, make_vector_env
from mtxl_rl.envs.tasks.canvas import enlarge
from mtxl_rl.envs.tasks.catalog import TASKS, TaskEntry
from mtxl_rl.evaluation.plots import draw_curves

IMAGES = Path(__file__).parent / "images"
_VIEW_SIDE, _GAP, _CAPTION = 256, 8, 36  # pixels
_BACKGROUND = (24, 24, 28)
_TOP_VIEW_WIDTH = 1.1  # Width of the top view, in widths of the maze.
_UNSEEN_BRIGHTNESS = 0.35
_MAZE_STEPS, _AGENT_STEPS, _TASK_STEPS = 120, 160, 60
_MAZE_SEED, _AGENT_SEED = 3, 0
_AGENT, _GRID_AGENT = "MemoryMaze-odometry", "GridMemoryMaze-GPS-13x13"

Frame = NDArray[np.uint8]
"""Red, green and blue, [H, W, 3]."""


def write_gif(
    path: Path, frames: Sequence[Frame], *, frames_per_second: float, num_colors: int
) -> None:
    """Write a video in an endless loop, with one palette for all frames, which keeps it small."""
    sample = np.concatenate(frames[:: max(1, len(frames) // 8)])
    palette = Image.fromarray(sample).quantize(num_colors, kmeans=2)
    first, *others = (
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    )
    first.save(
        path,
        save_all=True,
        append_images=others,
        duration=round(1000 / frames_per_second),
        loop=0,
        optimize=True,
    )


def maze_frames(*, num_steps: int, seed: int) -> list[Frame]:
    """Draw an explorer in Memory Maze 9x9: what it observes, and the maze from above.

    From above, the cells that it has not seen in this episode are dark.
    """
    config = MemoryMazeConfig(size="9x9", num_threads=1)
    above = _from_above(config.size, config.textures)
    envs = [MemoryMazeVectorEnv(1, config=each, seed=seed) for each in (config, above)]
    explorer = Explorer(1, grid=config.maze_size.grid)
    views = [np.asarray(env.reset()[0])[0] for env in envs]
    frames, score = [], 0
    for step in range(num_steps + 1):
        envs[0].explore(explorer)
        is_seen = explorer.memory.seen_at[0] >= 0
        top = _darken_unseen(views[1], is_seen)
        frames.append(_maze_frame(views[0], top, score=score, step=step))
        for index, env in enumerate(envs):
            pictures, rewards, *_ = env.step(explorer.actions.copy())
            views[index] = np.asarray(pictures)[0]
        score += int(rewards[0])
    for env in envs:
        env.close()
    return frames


def _maze_frame(view: Frame, top: Frame, *, score: int, step: int) -> Frame:
    """Join view and maze; below them the goal's colour, the return and the step."""
    left = Image.fromarray(enlarge(view, factor=_VIEW_SIDE // len(view)))
    red, green, blue = (int(part) for part in view[0, 0])  # The border has the goal's colour.
    frame = Image.new("RGB", (2 * _VIEW_SIDE + _GAP, _VIEW_SIDE + _CAPTION), _BACKGROUND)
    frame.paste(left)
    frame.paste(Image.fromarray(top), (_VIEW_SIDE + _GAP, 0))
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(18)
    middle = _VIEW_SIDE + _CAPTION // 2
    draw.text((4, middle), "goal", "white", font, anchor="lm")
    draw.ellipse((48, middle - 9, 66, middle + 9), fill=(red, green, blue))
    draw.text((_VIEW_SIDE + _GAP, middle), f"return {score}", "white", font, anchor="lm")
    draw.text((frame.width - 4, middle), f"step {step}", "white", font, anchor="rm")
    return np.asarray(frame)


def _darken_unseen(top: Frame, is_seen: NDArray[np.bool_]) -> Frame:
    """Darken the cells [n, n] of a maze from above that were not seen."""
    grid = len(is_seen)
    offset = (np.arange(len(top)) + 0.5) / len(top) - 0.5
    cell = 1 + np.floor((offset * _TOP_VIEW_WIDTH + 0.5) * grid).astype(int).clip(-1, grid)
    is_bright = np.pad(is_seen, 1, constant_values=True)  # What surrounds the maze stays bright.
    brightness = np.where(is_bright[np.ix_(cell, cell)], 1.0, _UNSEEN_BRIGHTNESS)
    return (top * brightness[..., None]).astype(np.uint8)


def agent_frames(path: Path, *, num_steps: int, seed: int) -> list[Frame]:
    """Draw a trained agent in Memory Maze: what it sees, the maze from above, what it remembers.

    A ring shows where the agent's prediction puts a sphere that was in view in this episode; from
    above, the cells that were not are dark.
    """
    agent = Agent.load(path, device="cpu", seed=seed)
    policy, task = agent.policy, evaluation_env(agent.config.env)
    assert isinstance(task, MemoryMazeConfig)
    camera = MemoryMazeVectorEnv(1, config=_from_above(task.size, task.textures), seed=seed)
    top, frames, score = np.asarray(camera.reset(seed=seed)[0])[0], [], 0.0
    explorer = Explorer(1, grid=task.maze_size.grid)
    with closing(camera), closing(make_vector_env(task, num_envs=1, seed=seed)) as env:
        maze = env.unwrapped
        assert isinstance(maze, MemoryMazeVectorEnv)
        actor = agent.actor(env, is_training=True)
        actor.reset(seed=seed)
        cache = policy.prefill(policy.torso.initial_state(1))
        for step in range(num_steps + 1):
            maze.explore(explorer)
            inputs = actor.inputs()
            vectors = policy.predict(inputs, cache)["seen_targets_vec"].view(-1, 2).numpy()
            places = _on_the_map(vectors, maze, grid=task.maze_size.grid)
            image = _darken_unseen(top, explorer.memory.seen_at[0] >= 0)
            image = _with_rings(image, places, maze.target_ages()[0] >= 0, grid=task.maze_size.grid)
            view = inputs.observation["image"][0].numpy()
            frames.append(_maze_frame(view, image, score=int(score), step=step))
            transition, _ = actor.step()
            score += float(transition.reward[0])
            actions = actor.inputs().previous_action[:, 0].numpy()
            top = np.asarray(camera.step(actions)[0])[0]
    return frames


def _from_above(size: str, textures: str) -> MemoryMazeConfig:
    return MemoryMazeConfig(
        size=size, textures=textures, num_threads=1, top_camera=True, camera_resolution=_VIEW_SIDE
    )


def _on_the_map(
    vectors: NDArray[np.float32], maze: MemoryMazeVectorEnv, *, grid: int
) -> NDArray[np.float64]:
    """Places [n, 2] of vectors (right, ahead) from where the first environment's agent is."""
    x, y, _, heading, _ = maze.get_state()["position"][0]
    right, ahead = vectors.T
    offset = np.stack(
        [
            np.cos(heading) * ahead + np.sin(heading) * right,
            np.sin(heading) * ahead - np.cos(heading) * right,
        ],
        axis=-1,
    )
    return grid_positions(np.array([x, y]), grid=grid) + offset


def _with_rings(
    top: Frame, places: NDArray[np.float64], is_shown: NDArray[np.bool_], *, grid: int
) -> Frame:
    """Draw a ring around each place that is shown, [n, 2] in cells from the lower left corner."""
    image, side = Image.fromarray(top), len(top)
    draw, cell = ImageDraw.Draw(image), side / grid / _TOP_VIEW_WIDTH
    for color, (x, y) in zip(
        np.array(TARGET_COLORS)[: len(places)][is_shown], places[is_shown], strict=True
    ):
        column = side / 2 + (x + 1 - grid / 2) * cell
        row = side / 2 - (y + 1 - grid / 2) * cell
        box = (column - 0.6 * cell, row - 0.6 * cell, column + 0.6 * cell, row + 0.6 * cell)
        red, green, blue = (int(255 * part) for part in color)
        draw.ellipse(box, outline=(red, green, blue), width=3)
    return np.asarray(image)


def task_frames(task: TaskEntry, *, num_steps: int) -> list[Frame]:
    """Draw a task with its first settings under random actions."""
    rng = np.random.default_rng(0)
    env = task.task_class(task.configs()[0], num_envs=1, seed=0)
    env.reset()
    frames = [env.render_row(0)]
    for _ in range(num_steps):
        env.step(rng.integers(env.num_actions, size=1))
        frames.append(env.render_row(0))
    env.close()
    return frames


def write_task_pictures(folder: Path) -> None:
    """Write NAME.gif for each built-in task."""
    for name, task in TASKS.items():
        frames = task_frames(task, num_steps=_TASK_STEPS)
        write_gif(folder / f"{name}.gif", frames, frames_per_second=4, num_colors=32)


def main() -> None:
    """Make the pictures in docs/images."""
    IMAGES.mkdir(exist_ok=True)
    frames = maze_frames(num_steps=_MAZE_STEPS, seed=_MAZE_SEED)
    write_gif(IMAGES / "memory_maze.gif", frames, frames_per_second=8, num_colors=128)
    folder = IMAGES.parents[1] / "pretrained" / _AGENT
    frames = agent_frames(folder, num_steps=_AGENT_STEPS, seed=_AGENT_SEED)
    write_gif(IMAGES / "agent.gif", frames, frames_per_second=8, num_colors=64)
    options = "episodes=1 num_envs=1 memory=on"
    evaluate("TMaze", f"{options} timeline", IMAGES / "tmaze_memory.png")
    panels = "timeline_panels=[observation,reward,retrieved]"
    evaluate("TMaze", f"{options} {panels} timeline", IMAGES / "tmaze_retrieved.png")
    options = f"{options} video_steps=200"
    evaluate(_GRID_AGENT, f"{options} timeline", IMAGES / "grid_maze_timeline.png")
    for agent, name in ((_GRID_AGENT, "grid_maze_probe.png"), (_AGENT, "memory_maze_probe.png")):
        evaluate(agent, "episodes=64 num_envs=64 probe", IMAGES / name)
    draw_returns(IMAGES / "grid_maze_curves.csv", title="GridMemoryMaze-GPS-13x13")


def draw_returns(path: Path, *, title: str) -> None:
    """Draw the returns of runs, `charts/episodic_return` of their metrics.jsonl, as PATH.png."""
    curves = pd.read_csv(path).assign(task=title)
    draw_curves(curves, title="", ylabels={title: "return"}).savefig(path.with_suffix(".png"))


def evaluate(agent: str, options: str, path: Path) -> None:
    """Evaluate an agent of `pretrained/`; the options end with that of the picture."""
    command = f"-m mtxl_rl.evaluate checkpoint=pretrained/{agent} {options}={path}"
    subprocess.run([sys.executable, *command.split()], cwd=IMAGES.parents[1], check=True)
    colors = Image.open(path).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE)
    colors.save(path, optimize=True)


if __name__ == "__main__":
    main()
