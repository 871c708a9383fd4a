"""Memory Maze, native: the environment of the package memory-maze, batched and without MuJoCo.

Pasukonis et al. (2023), "Evaluating Long-Term Memory in 3D Mazes", https://arxiv.org/abs/2210.13383

    spec.py        the tasks: sizes, variants, constants
    layout.py      mazes, spheres and spawns, from the original's random stream
    physics.py     the rolling ball, 50 substeps at a time, by the equations that MuJoCo solves
    textures.py    the textures' mip pyramids; png.py reads them
    camera.py      a pixel's ray, for the walker's camera and the one above
    spans.py       the fast renderer of the walker's view; raycast.py draws every other view
    observe.py     border, minimap and the extra observations
    advance.py     one step of many mazes, compiled
    vector.py      the batched Gymnasium environment; single.py is one of it
    oracle.py      a walker that knows the maze; policies.py names it and the random one
    __main__.py    commands: play, oracle, random
    kernels.py, threads.py, packages.py   compiling, sharing the cores, what must be installed
"""
