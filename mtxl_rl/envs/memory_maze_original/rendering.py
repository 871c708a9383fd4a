"""Draw the walker's view of a MuJoCo model into a small off-screen buffer.

dm_control draws the same picture, but creates a new scene and camera for every frame.
"""

import atexit
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtxl_rl.envs.memory_maze_original.original_packages import open_gl_context


class Renderer:
    """One OpenGL context with the graphics of the model that was loaded last.

    Every method makes the context current first, so that one process can use several renderers.
    """

    def __init__(self, *, side: int) -> None:
        self._context: Any = None
        self._graphics: Any = None
        self._gl = open_gl_context(side)
        self._pixels = np.empty((side, side, 3), np.uint8)
        _close_at_exit(self)

    def load(self, model: Any, *, camera: int) -> None:  # noqa: ANN401 - mujoco has no types
        """Upload the model's textures and planes.

        Every model needs a new MjrContext, because the context always draws the planes of the model
        that it was created for.
        """
        import mujoco

        self._gl.make_current()
        self._free_graphics()
        self._graphics = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._graphics)
        # The scene, its options and the camera equal those that dm_control's Camera creates for
        # each frame; updating the scene overwrites everything that a frame changed.
        self._scene = mujoco.MjvScene(model, maxgeom=1000 + model.ngeom)
        self._option = mujoco.MjvOption()
        self._option.flags[mujoco.mjtVisFlag.mjVIS_RANGEFINDER] = False
        self._perturb = mujoco.MjvPerturb()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._camera.fixedcamid = camera
        self._viewport = mujoco.MjrRect(0, 0, self._pixels.shape[1], self._pixels.shape[0])

    def draw(self, model: Any, data: Any) -> NDArray[np.uint8]:  # noqa: ANN401
        """Return the camera's view [height, width, 3] in a new array."""
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
        """Free the graphics and the context; a second call does nothing."""
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
        # mujoco would free the graphics in the current context, which may be another renderer's.
        self.close()


_open: weakref.WeakSet[Renderer] = weakref.WeakSet()


def _close_at_exit(renderer: Renderer) -> None:
    # Registered after the first context opened, so that it runs before EGL's exit handler.
    if not _open:
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _open.add(renderer)


def _close_all() -> None:
    for renderer in list(_open):
        renderer.close()
