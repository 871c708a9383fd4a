"""Draws the walker's view of a MuJoCo model into a small off-screen buffer.

dm_control draws the same picture, but makes a new scene and camera for every frame.
"""

import atexit
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze_original.original_packages import open_gl_context


class Renderer:
    """One OpenGL context, and in it the graphics of the model that was loaded last.

    Every use makes the context current first: several renderers may take turns in one process.
    """

    def __init__(self, *, side: int) -> None:
        self._context: Any = None
        self._graphics: Any = None
        self._gl = open_gl_context(side)
        self._pixels = np.empty((side, side, 3), np.uint8)
        _close_at_exit(self)

    def load(self, model: Any, *, camera: int) -> None:  # noqa: ANN401 - mujoco has no types
        """Uploads the model's textures and planes.

        They are made anew for every model: an MjrContext keeps display lists of the planes of the
        model that it was made for, and draws those whatever model it is given.
        """
        import mujoco

        self._gl.make_current()
        self._free_graphics()
        self._graphics = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._graphics)
        # The scene, its options and the camera are those that dm_control's Camera makes for each
        # frame; updating the scene overwrites all that a frame leaves in it.
        self._scene = mujoco.MjvScene(model, maxgeom=1000 + model.ngeom)
        self._option = mujoco.MjvOption()
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = False
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = camera
        self._viewport = mujoco.MjrRect(0, 0, self._pixels.shape[1], self._pixels.shape[0])

    def draw(self, model: Any, data: Any) -> NDArray[np.uint8]:  # noqa: ANN401
        """The camera's view [height, width, 3], a fresh array."""
        import mujoco

        mujoco.mjv_updateScene(
            model,
            data,
            self._option,
            self._perturb,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._scene,
        )
        self._gl.make_current()
        mujoco.mjr_render(self._viewport, self._scene, self._graphics)
        mujoco.mjr_readPixels(self._pixels, None, self._viewport, self._graphics)
        # OpenGL's first row is the bottom one.
        return self._pixels[::-1].copy()

    def close(self) -> None:
        """Frees the graphics and the context; a second call does nothing."""
        gl, self._gl = getattr(self, "_gl", None), None
        if gl is None:
            return
        gl.make_current()
        self._free_graphics()
        gl.free()

    def _free_graphics(self) -> None:
        if self._graphics is not None:
            self._graphics.free()
            self._graphics = None

    def __del__(self) -> None:
        # Left to itself mujoco would free the graphics in whatever context is current, maybe
        # another's.
        self.close()


_open: weakref.WeakSet[Renderer] = weakref.WeakSet()


def _close_at_exit(renderer: Renderer) -> None:
    # Registered after the first context was opened, hence run before EGL's own exit handler ends
    # it.
    if not _open:
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open.add(renderer)


def _close_all() -> None:
    for renderer in list(_open):
        renderer.close()
