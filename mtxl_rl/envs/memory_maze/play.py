"""A window in which a person walks a maze, and videos of policies."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze.policies import POLICIES
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

_WINDOW_SIDE = 640
_GIF_SIDE = 256
_HELP = "arrow keys walk and turn, R starts a new maze, Esc ends"


def play(config: MemoryMazeConfig, *, seed: int) -> None:
    """Open a window until Esc is pressed or it is closed; needs pygame."""
    if config.extra_observations or not config.discrete_actions:
        raise ValueError("play shows pictures and takes the six actions; choose another variant.")
    try:
        import pygame
    except ImportError:
        raise ImportError("play needs the package 'pygame': pip install 'mtxl_rl[play]'") from None
    env = MemoryMazeVectorEnv(1, config=config, seed=seed)
    pictures, _ = env.reset()
    pygame.display.init()  # all of pygame would also ask for a sound card
    window = pygame.display.set_mode((_WINDOW_SIDE, _WINDOW_SIDE))
    clock = pygame.time.Clock()
    score, is_open = 0, True
    while is_open:
        for event in pygame.event.get():
            is_key = event.type == pygame.KEYDOWN
            if event.type == pygame.QUIT or (is_key and event.key == pygame.K_ESCAPE):
                is_open = False
            elif is_key and event.key == pygame.K_r:
                (pictures, _), score = env.reset(), 0
        pictures, rewards, *_ = env.step(np.array([pressed_action(pygame)]))
        score += int(rewards[0])
        pygame.display.set_caption(f"Memory Maze {config.size}: {score} spheres; {_HELP}")
        surface = pygame.surfarray.make_surface(np.asarray(pictures)[0].swapaxes(0, 1))
        pygame.transform.scale(surface, (_WINDOW_SIDE, _WINDOW_SIDE), window)
        pygame.display.flip()
        clock.tick(config.control_freq)
    pygame.display.quit()
    env.close()


def pressed_action(pygame: Any) -> int:  # noqa: ANN401 - a module without types
    """The action of the arrow keys that are held."""
    keys = pygame.key.get_pressed()
    turn = int(keys[pygame.K_RIGHT]) - int(keys[pygame.K_LEFT])
    if keys[pygame.K_UP]:
        return {0: 1, -1: 4, 1: 5}[turn]
    return {0: 0, -1: 2, 1: 3}[turn]


def write_gif(
    path: Path, config: MemoryMazeConfig, *, policy: str, seed: int, num_steps: int
) -> None:
    """Write a video of a policy's first steps, in an endless loop; needs imageio.

    Args:
        path: The file, a .gif in an existing folder; it is overwritten.
        config: The task, with pictures alone as observations.
        policy: A key of `POLICIES`.
        seed: Of the maze and of the policy.
        num_steps: Steps of the video, at least 1.
    """
    _check_writable(path)
    try:
        import imageio.v3 as imageio
    except ImportError:
        raise ImportError(
            "--gif needs the package 'imageio': pip install 'mtxl_rl[video]'"
        ) from None
    if config.extra_observations or num_steps < 1:
        raise ValueError(
            f"--gif records pictures: choose a variant without ExtraObs, and --steps={num_steps} "
            "must be at least 1."
        )
    env = MemoryMazeVectorEnv(1, config=config, seed=seed)
    act = POLICIES[policy](seed)
    pictures = [np.asarray(env.reset()[0])[0]]
    pictures.extend(np.asarray(env.step(act(env))[0])[0] for _ in range(num_steps))
    env.close()
    scale = max(1, _GIF_SIDE // config.camera_resolution)
    video: NDArray[np.uint8] = np.stack(pictures).repeat(scale, axis=1).repeat(scale, axis=2)
    # As bytes, since imageio prints its own traceback if it cannot open a file.
    content = imageio.imwrite(
        "<bytes>", video, extension=".gif", duration=1000 / config.control_freq, loop=0
    )
    path.write_bytes(content)


def _check_writable(path: Path) -> None:
    if path.suffix.lower() != ".gif":
        raise ValueError(f"--gif={path} must end in .gif, the only video format that it writes.")
    if not path.parent.is_dir():
        raise ValueError(
            f"--gif={path} lies in a folder that does not exist; make {path.parent} first, or "
            "choose another."
        )
