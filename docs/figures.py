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
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mtxl_rl.agent import Agent
from mtxl_rl.envs.memory_maze.explorer import Explorer
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv
from mtxl_rl.envs.registry import evaluation_env, make_vector_env
from mtxl_rl.envs.tasks.canvas import BORDER, DARK, GRAY, PALETTE, WHITE, enlarge
from mtxl_rl.envs.tasks.catalog import TASKS, TaskEntry
from mtxl_rl.envs.tasks.grid_memory_maze import REACH, VIEW, GridMemoryMaze

IMAGES = Path(__file__).parent / "images"
_VIEW_SIDE, _GAP, _CAPTION = 256, 8, 36  # pixels
_BACKGROUND = (24, 24, 28)
_TOP_VIEW_WIDTH = 1.1  # Width of the top view, in widths of the maze.
_UNSEEN_BRIGHTNESS = 0.35
_MAZE_STEPS, _AGENT_STEPS, _TASK_STEPS = 120, 200, 60
_MAZE_SEED, _AGENT_SEED = 3, 0
_AGENT = "GridMemoryMaze-GPS-13x13"

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
    above = MemoryMazeConfig(
        size="9x9", num_threads=1, top_camera=True, camera_resolution=_VIEW_SIDE
    )
    envs = [MemoryMazeVectorEnv(1, config=each, seed=seed) for each in (config, above)]
    explorer = Explorer(1, grid=config.maze_size.grid)
    views = [np.asarray(env.reset()[0])[0] for env in envs]
    frames, score = [], 0
    for step in range(num_steps + 1):
        envs[0].explore(explorer)
        is_seen = explorer.memory.seen_at[0] >= 0
        frames.append(_maze_frame(*views, is_seen, score=score, step=step))
        for index, env in enumerate(envs):
            pictures, rewards, *_ = env.step(explorer.actions.copy())
            views[index] = np.asarray(pictures)[0]
        score += int(rewards[0])
    for env in envs:
        env.close()
    return frames


def _maze_frame(
    view: Frame, top: Frame, is_seen: NDArray[np.bool_], *, score: int, step: int
) -> Frame:
    factor = _VIEW_SIDE // len(view)
    left = Image.fromarray(enlarge(view, factor=factor))
    right = Image.fromarray(_darken_unseen(top, is_seen))
    red, green, blue = (int(part) for part in view[0, 0])  # The border has the goal's colour.
    return _side_by_side(left, right, goal=(red, green, blue), score=score, step=step)


def _darken_unseen(top: Frame, is_seen: NDArray[np.bool_]) -> Frame:
    """Darken the cells [n, n] of a maze from above that were not seen."""
    grid = len(is_seen)
    offset = (np.arange(len(top)) + 0.5) / len(top) - 0.5
    cell = 1 + np.floor((offset * _TOP_VIEW_WIDTH + 0.5) * grid).astype(int).clip(-1, grid)
    is_bright = np.pad(is_seen, 1, constant_values=True)  # What surrounds the maze stays bright.
    brightness = np.where(is_bright[np.ix_(cell, cell)], 1.0, _UNSEEN_BRIGHTNESS)
    return (top * brightness[..., None]).astype(np.uint8)


def agent_frames(*, num_steps: int, seed: int) -> list[Frame]:
    """Draw a trained agent: what it sees, the maze from above, and what it remembers.

    A ring shows where the agent's prediction puts an object that it has seen in this episode.
    """
    agent = Agent.load(IMAGES.parents[1] / "pretrained" / _AGENT, seed=seed)
    policy, task = agent.policy, evaluation_env(agent.config.env)
    frames, score = [], 0.0
    with closing(make_vector_env(task, num_envs=1, seed=seed)) as env:
        maze = env.unwrapped
        assert isinstance(maze, GridMemoryMaze)
        actor = agent.actor(env, is_training=True)
        actor.reset(seed=seed)
        cache = policy.prefill(policy.torso.initial_state(1))
        for step in range(num_steps + 1):
            with torch.no_grad():
                predictions = policy.predict(actor.inputs(), cache)
            places = predictions["seen_targets_pos"].reshape(-1, 2).cpu().numpy()
            is_seen = maze.target_ages()[0] >= 0
            frames.append(_agent_frame(maze, places, is_seen, score=score, step=step))
            transition, _ = actor.step()
            score += float(transition.reward[0])
    return frames


def _agent_frame(
    maze: GridMemoryMaze,
    places: NDArray[np.float32],
    is_seen: NDArray[np.bool_],
    *,
    score: float,
    step: int,
) -> Frame:
    top = maze.render_row(0)
    cell = (len(top) - 2 * BORDER) // maze.stride
    padding = BORDER + REACH * cell  # The outermost walls are only there to be seen.
    inside = slice(padding, len(top) - padding)
    image = Image.fromarray(top[inside, inside])
    draw = ImageDraw.Draw(image)
    for color, (row, column), seen in zip(PALETTE, places, is_seen, strict=False):
        if seen:
            x, y = (column + 1.5) * cell, (row + 1.5) * cell
            box = (x - 0.6 * cell, y - 0.6 * cell, x + 0.6 * cell, y + 0.6 * cell)
            draw.ellipse(box, outline=color, width=4)
    world = maze.world[0, maze.cells_in_view()[0]].reshape(VIEW, VIEW)
    colors = np.array([DARK, GRAY, *PALETTE], np.uint8)[world]
    colors[REACH, REACH] = WHITE
    view = Image.fromarray(colors).resize(image.size, Image.Resampling.NEAREST)
    goal = PALETTE[maze.prompt[0]]
    return _side_by_side(view, image, goal=goal, score=int(score), step=step)


def _side_by_side(
    left: Image.Image,
    right: Image.Image,
    *,
    goal: tuple[int, int, int],
    score: int,
    step: int,
) -> Frame:
    """Join two squares of equal size; below them the goal's colour, the return and the step."""
    side = left.width
    frame = Image.new("RGB", (2 * side + _GAP, side + _CAPTION), _BACKGROUND)
    frame.paste(left)
    frame.paste(right, (side + _GAP, 0))
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(18)
    middle, half = side + _CAPTION // 2, side + _GAP
    draw.text((4, middle), "goal", "white", font, anchor="lm")
    draw.ellipse((48, middle - 9, 66, middle + 9), fill=goal)
    draw.text((half, middle), f"return {score}", "white", font, anchor="lm")
    draw.text((frame.width - 4, middle), f"step {step}", "white", font, anchor="rm")
    return np.asarray(frame)


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
    frames = agent_frames(num_steps=_AGENT_STEPS, seed=_AGENT_SEED)
    write_gif(IMAGES / "agent.gif", frames, frames_per_second=8, num_colors=32)
    options = "episodes=1 num_envs=1 memory=on"
    evaluate("TMaze", f"{options} timeline={IMAGES / 'tmaze_memory.png'}")
    evaluate(_AGENT, f"{options} video_steps=200 timeline={IMAGES / 'grid_maze_timeline.png'}")
    evaluate(_AGENT, f"episodes=64 num_envs=64 probe={IMAGES / 'grid_maze_probe.png'}")


def evaluate(agent: str, options: str) -> None:
    """Evaluate an agent of `pretrained/`; the options name the pictures."""
    command = f"-m mtxl_rl.evaluate checkpoint=pretrained/{agent} {options}"
    subprocess.run([sys.executable, *command.split()], cwd=IMAGES.parents[1], check=True)


if __name__ == "__main__":
    main()
