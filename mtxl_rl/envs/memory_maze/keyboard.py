"""A window in which a person walks a maze."""

from typing import Any

import numpy as np

from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

_WINDOW_SIDE = 640
_HELP = "arrow keys walk and turn, R starts a new maze, Esc ends"


def play(config: MemoryMazeConfig, *, seed: int) -> None:
    """Open a window until Esc is pressed or it is closed; needs pygame."""
    if config.extra_observations or not config.discrete_actions:
        raise ValueError(
            "player=keyboard shows pictures and takes the six actions: remove "
            "env.extra_observations=true and env.discrete_actions=false"
        )
    try:
        import pygame
    except ImportError:
        raise ImportError("player=keyboard needs pygame: pip install 'mtxl_rl[play]'") from None
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
