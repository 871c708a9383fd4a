"""Memory Maze, native: the environment of the package memory-maze, batched and without MuJoCo.

Pasukonis et al. (2023), "Evaluating Long-Term Memory in 3D Mazes", https://arxiv.org/abs/2210.13383

    spec.py        the tasks: sizes, variants, constants
    text_maze.py   rooms and corridors, cell by cell labmaze's; mersenne.py their random numbers
    layout.py      mazes, spheres and spawns, from the original's random stream
    physics.py     the rolling ball, 50 substeps at a time, by the equations that MuJoCo solves
    texture_files.py   finds and downloads the original's pictures; procedural.py draws others
    textures.py    the pictures' mip pyramids; png.py reads them
    camera.py      a pixel's ray, for the walker's camera and the one above
    span_renderer.py  the fast renderer of the walker's view; raycast.py draws every other view
    observe.py     border, minimap and the extra observations
    advance.py     one step of many mazes, compiled
    vector.py      the batched Gymnasium environment; single.py is one of it
    oracle.py      a walker that knows the maze; explorer.py knows what it has seen
    careful.py     a walker that keeps away from walls, for comparisons with the original
    keyboard.py    a window for a person who walks
    kernels.py, threads.py   compiling, sharing the cores
"""
