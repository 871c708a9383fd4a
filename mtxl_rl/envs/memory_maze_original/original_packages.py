"""Import memory-maze and its dependencies without their notices; open OpenGL without a display.

The packages are optional. Each missing one is reported in one sentence with its pip command.
"""

import contextlib
import ctypes
import ctypes.util
import importlib
import importlib.util
import io
import logging
import os
import platform
import sys
import warnings
from typing import Any

_PACKAGES = ("memory_maze", "dm_control", "labmaze", "mujoco", "gym")
_PIP_LINE = "pip install 'mtxl_rl[memory-maze-original]'"
_APT_EGL = "apt-get install libegl1 libegl-mesa0 libgl1"
_APT_OSMESA = "apt-get install libosmesa6 (and set MUJOCO_GL=osmesa)"
_GL_BACKENDS = ("egl", "osmesa", "glfw")


def check_packages() -> None:
    """Raise ImportError if a package is missing; imports none of them."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(missing_package_message(missing[0], python=sys.version_info[:2]))


def missing_package_message(package: str, *, python: tuple[int, int]) -> str:
    """Return the message for a missing package on the Python version `python`."""
    needs = f"the original Memory Maze needs the package {package!r}"
    if python >= (3, 13):
        return (
            f"{needs}, which needs labmaze, and labmaze has no wheels for Python 3.13 and later: "
            f"use Python 3.11 or 3.12 and {_PIP_LINE}"
        )
    return f"{needs}: {_PIP_LINE}"


def import_packages() -> None:
    """Import the packages without their notices, after choosing the OpenGL backend.

    dm_control reads MUJOCO_GL once, at import, and memory_maze sets it to `egl` where it is unset.
    """
    check_packages()
    if "memory_maze" in sys.modules:
        return
    choose_gl_backend()
    # gym prints a deprecation notice on stderr, and some imports raise deprecation warnings.
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        importlib.import_module("memory_maze")
    # dm_control logs this at every reset of a walker without a free joint, as this one is.
    logging.getLogger("absl").addFilter(_is_worth_showing)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    return "Cannot set velocity on Entity with no free joint" not in record.getMessage()


def choose_gl_backend() -> str:
    """Return MUJOCO_GL's backend; if it is not set, EGL where it opens, else OSMesa.

    The choice is written to MUJOCO_GL for dm_control and mujoco. EGL on a CPU and OSMesa draw equal
    frames.
    """
    backend = os.environ.get("MUJOCO_GL", "").strip().lower()
    if backend:
        _check_backend(backend)
        return backend
    if platform.system() != "Linux":
        return "glfw"
    for backend in ("egl", "osmesa"):
        if _opens(backend):
            os.environ["MUJOCO_GL"] = backend
            return backend
    raise RuntimeError(
        "the original Memory Maze draws with OpenGL, and neither EGL nor OSMesa "
        "can be opened here: "
        f"{_APT_EGL}, or {_APT_OSMESA}"
    )


def _check_backend(backend: str) -> None:
    if backend not in _GL_BACKENDS:
        raise RuntimeError(
            f"MUJOCO_GL={backend} is not an OpenGL backend for the original Memory Maze; "
            f"set it to one of {', '.join(_GL_BACKENDS)}, or unset it"
        )
    if backend == "egl" and not _opens("egl"):
        raise RuntimeError(
            f"MUJOCO_GL=egl, but EGL cannot be opened here: {_APT_EGL}, or {_APT_OSMESA}"
        )
    if backend == "osmesa" and not _opens("osmesa"):
        raise RuntimeError(
            "MUJOCO_GL=osmesa, but the library OSMesa is not installed: "
            f"apt-get install libosmesa6, or unset MUJOCO_GL and {_APT_EGL}"
        )


def _opens(backend: str) -> bool:
    """Return whether the backend's library is installed and works, without importing PyOpenGL.

    PyOpenGL fixes its platform at its first import, so a backend cannot be tried by importing it.
    """
    if backend == "osmesa":
        return ctypes.util.find_library("OSMesa") is not None
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    return _any_egl_device_opens(egl)


def _any_egl_device_opens(egl: ctypes.CDLL) -> bool:
    """Return whether a display opens on any EGL device, which mujoco requires."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    find = egl.eglGetProcAddress
    find.restype, find.argtypes = pointer, [ctypes.c_char_p]
    query_address = find(b"eglQueryDevicesEXT")
    display_address = find(b"eglGetPlatformDisplayEXT")
    if not query_address or not display_address:
        return False
    query = ctypes.CFUNCTYPE(number, number, pointer, pointer)(query_address)
    get_display = ctypes.CFUNCTYPE(pointer, number, pointer, pointer)(display_address)
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    devices, count = (pointer * 16)(), number()
    if not query(16, devices, ctypes.addressof(count)):
        return False
    egl_platform_device = 0x313F  # EGL_PLATFORM_DEVICE_EXT
    displays = [get_display(egl_platform_device, device, None) for device in devices[: count.value]]
    return any(display and egl.eglInitialize(display, None, None) for display in displays)


def open_gl_context(side: int) -> Any:  # noqa: ANN401 - mujoco's context classes share no type
    """Return mujoco's OpenGL context of the chosen backend, with `side` x `side` pixels.

    dm_control's classes open the same context, but run OSMesa in its own thread, which prints
    errors at exit.
    """
    backend = choose_gl_backend()
    try:
        return importlib.import_module(f"mujoco.{backend}").GLContext(side, side)
    except (AttributeError, ImportError, RuntimeError) as error:
        raise RuntimeError(
            f"OpenGL cannot be opened with MUJOCO_GL={backend} ({error}): "
            f"{_APT_EGL}, or {_APT_OSMESA}"
        ) from error
