"""Finds the original's pictures of walls and floors, and downloads them.

They are files of the package labmaze, which has no wheels for Python 3.13 and later. The files are
the same in each of its wheels, so pip can fetch the one for Python 3.12 from any Python. This
module loads nothing but the standard library.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

AUTO, ORIGINAL, PROCEDURAL = TEXTURE_CHOICES = ("auto", "original", "procedural")
"""The legal values of ``env.textures``; see `MemoryMazeConfig`."""
WALL_TEXTURES = ("blue", "cerise", "green_bright", "green", "purple", "red_bright", "red", "yellow")
"""Textures of walls, in the order from which the original chooses."""
FLOOR_TEXTURES = ("blue", "blue_bright")
"""Textures of the floors of corridors and of rooms."""
DOWNLOAD_COMMAND = "python -m mtxl_rl.get_textures"

_LABMAZE = "labmaze==1.0.6"
_STYLE = "style_01"
_SHA256 = {
    "wall_blue_d.png": "493772672bfda4bc48a97a666caa33e99b83500804e225fdd20cf74991822ffb",
    "wall_cerise_d.png": "c04278ccf28a3a53a9871588fb37898010c2e579b318f622f79d9d6375ca4913",
    "wall_green_bright_d.png": "c053795ece19637dc98309c5c637b4317a5ed9fd2ec13b3e5a5912feaec20566",
    "wall_green_d.png": "be304631c53ed2d9b494f9c6504839595181d0c8a3041c428c93b7029b8a0e09",
    "wall_purple_d.png": "e4f3cb47b0d80619a46e21049d91d4bf7cc174a70a71ef2a83bb85b7374ae511",
    "wall_red_bright_d.png": "c2d6583b856c01fac757e7a8d8e2bde8c3d0e8c9dac97beb16527d542541cf5b",
    "wall_red_d.png": "6c1a662530c8a452ba35a692e8a732e043e100f4fc99aa7afab4a3775f095012",
    "wall_yellow_d.png": "e9d9e150f81418e791aa23d45f693f1a153dbeef947ec75b14ae2b99963b263d",
    "floor_blue_d.png": "831bedae039b4b1949bb930b3a30eb1757c2897a00ec29e42be42b92ea0c5d2c",
    "floor_blue_bright_d.png": "4822b4d6f505496ead4791ca5acd248b4ea3509a4bed90690f3bab5d9badc0f7",
}
"""Checksums of the pictures, walls before floors."""


def texture_paths(folder: Path) -> list[Path]:
    """Paths of the pictures in a folder: `WALL_TEXTURES`, then `FLOOR_TEXTURES`."""
    names = [f"wall_{name}_d.png" for name in WALL_TEXTURES]
    names += [f"floor_{name}_d.png" for name in FLOOR_TEXTURES]
    return [folder / name for name in names]


def original_folder() -> Path | None:
    """The folder that has all pictures: an installed labmaze's, else the cache; None without."""
    for folder in (_installed_folder(), cache_folder()):
        if folder is not None and all(path.is_file() for path in texture_paths(folder)):
            return folder
    return None


def _installed_folder() -> Path | None:
    # Importing labmaze is not needed to find its files.
    spec = importlib.util.find_spec("labmaze")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "assets" / _STYLE


def cache_folder() -> Path:
    """The folder of downloaded pictures: below ``MTXL_RL_CACHE``, else the user's cache folder."""
    chosen = os.environ.get("MTXL_RL_CACHE")
    if chosen:
        root = Path(chosen)
    elif sys.platform == "win32":
        root = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "mtxl_rl"
    elif sys.platform == "darwin":
        root = Path.home() / "Library/Caches/mtxl_rl"
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtxl_rl"
    return root / _LABMAZE.replace("==", "-") / _STYLE


def download_textures() -> Path:
    """Download labmaze's wheel with pip and unpack its pictures; return the cache folder.

    Raises:
        OSError: pip failed, or the cache folder cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        # The same wheel on every system: there is none for some, and only the pictures are used.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312"]
        command += ["--platform", "manylinux2014_x86_64", "--dest", folder, _LABMAZE]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode:
            reason = (run.stderr.strip() or "no message").splitlines()[-1]
            raise OSError(
                f"pip could not download {_LABMAZE} ({reason}). Try again with a network, or copy "
                f"its wheel for any Python here and type {DOWNLOAD_COMMAND} wheel=FILE."
            )
        (wheel,) = Path(folder).glob("*.whl")
        return unpack_textures(wheel)


def unpack_textures(wheel: Path) -> Path:
    """Unpack the pictures of a wheel of labmaze; return the cache folder.

    Raises:
        ValueError: the file is not a wheel of labmaze 1.0.6.
        OSError: the file cannot be read, or the cache folder cannot be written.
    """
    if not wheel.exists():
        raise FileNotFoundError(f"{wheel} does not exist; give the path of a wheel of {_LABMAZE}")
    try:
        with zipfile.ZipFile(wheel) as archive:
            pictures = {name: archive.read(f"labmaze/assets/{_STYLE}/{name}") for name in _SHA256}
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(
            f"{wheel} is not a wheel of {_LABMAZE}; get one with pip download --no-deps "
            f"--python-version 3.12 {_LABMAZE}."
        ) from error
    for name, content in pictures.items():
        if hashlib.sha256(content).hexdigest() != _SHA256[name]:
            raise ValueError(
                f"{name} in {wheel} is not the picture of {_LABMAZE}: its SHA-256 differs. "
                "Download the wheel again."
            )
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in pictures.items():
        # Another process may read the cache, or fill it too.
        part = folder / f"{name}.{os.getpid()}"
        part.write_bytes(content)
        part.replace(folder / name)
    return folder
