"""Where the pictures come from: an installed labmaze, the cache, or the procedural ones."""

import re
import subprocess
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtxl_rl.envs.memory_maze import texture_files
from mtxl_rl.envs.memory_maze.png import read_png
from mtxl_rl.envs.memory_maze.procedural import procedural_pictures
from mtxl_rl.envs.memory_maze.spec import MemoryMazeConfig
from mtxl_rl.envs.memory_maze.textures import load_atlas
from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv
from mtxl_rl.get_textures import main

WARNING = "Memory Maze draws procedural textures"


@pytest.fixture
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache on a machine without labmaze."""
    monkeypatch.setenv("MTXL_RL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(texture_files, "_installed_folder", lambda: None)
    load_atlas.cache_clear()
    return texture_files.cache_folder()


def wheel_of(folder: Path, path: Path, *, change: str = "") -> Path:
    """A wheel with the pictures of a folder, of which `change` is damaged."""
    with zipfile.ZipFile(path, "w") as archive:
        for picture in texture_files.texture_paths(folder):
            content = picture.read_bytes() + (b"more" if picture.name == change else b"")
            archive.writestr(f"labmaze/assets/style_01/{picture.name}", content)
    return path


def test_a_wheels_pictures_are_unpacked_into_the_cache_and_found(
    original_textures: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert texture_files.original_folder() is None
    wheel = wheel_of(original_textures, tmp_path / "labmaze.whl")
    main([f"wheel={wheel}"])
    assert capsys.readouterr().out.strip().endswith(f"are in {cache}")
    assert texture_files.original_folder() == cache
    paths = texture_files.texture_paths(cache)
    assert sorted(paths) == sorted(cache.iterdir())
    for ours, original in zip(paths, texture_files.texture_paths(original_textures), strict=True):
        assert ours.read_bytes() == original.read_bytes()
    main([])  # They are there: nothing is downloaded.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MemoryMazeConfig().textures == "original"


def test_a_damaged_picture_and_another_file_are_refused(
    original_textures: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = wheel_of(original_textures, tmp_path / "labmaze.whl", change="wall_red_d.png")
    other = tmp_path / "other.whl"
    other.write_bytes(b"not a zip file")
    for path, message in [
        (wheel, r"error: wall_red_d.png in .* its SHA-256 differs"),
        (other, r"error: .*other.whl is not a wheel of labmaze==1.0.6; get one"),
        (tmp_path / "none.whl", r"error: .*none.whl does not exist; give the path of a wheel"),
    ]:
        with pytest.raises(SystemExit):
            main([f"wheel={path}"])
        assert re.match(message, capsys.readouterr().err)
    assert not cache.exists()


def test_pip_downloads_the_wheel(
    original_textures: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pip(command: list[str], **_: Any) -> Any:  # noqa: ANN401
        assert command[1:5] == ["-m", "pip", "download", "--no-deps"]
        folder = command[command.index("--dest") + 1]
        wheel_of(original_textures, Path(folder) / "labmaze.whl")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(texture_files.subprocess, "run", pip)
    main([])
    assert texture_files.original_folder() == cache


def test_without_a_network_one_sentence_names_the_remedy(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pip(command: list[str], **_: Any) -> Any:  # noqa: ANN401
        return subprocess.CompletedProcess(command, 1, "", "ERROR: a\nERROR: no network\n")

    monkeypatch.setattr(texture_files.subprocess, "run", pip)
    with pytest.raises(SystemExit):
        main([])
    assert re.search(r"\(ERROR: no network\). Try again .* wheel=FILE", capsys.readouterr().err)
    assert not cache.exists()


@pytest.mark.parametrize(
    ("platform", "variables", "folder"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/mtxl_rl"),
        ("linux", {}, "~/.cache/mtxl_rl"),
        ("darwin", {}, "~/Library/Caches/mtxl_rl"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/mtxl_rl"),
        ("win32", {"MTXL_RL_CACHE": "/c"}, "/c"),
    ],
)
def test_the_cache_is_where_the_system_has_its_caches(
    platform: str, variables: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MTXL_RL_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(texture_files.sys, "platform", platform)
    expected = Path(folder).expanduser() / "labmaze-1.0.6" / "style_01"
    assert texture_files.cache_folder() == expected


def test_without_pictures_the_config_is_procedural_and_warns(cache: Path) -> None:
    assert not cache.exists()
    with pytest.warns(UserWarning, match=WARNING):
        config = MemoryMazeConfig()
    assert config.textures == "procedural"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert MemoryMazeConfig(textures="procedural").textures == "procedural"
    with pytest.raises(ValueError, match=r"env.textures=original needs the original's pictures"):
        MemoryMazeVectorEnv(1, config=MemoryMazeConfig(textures="original"))


def test_an_unknown_choice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"env.textures=fine is unknown; choose one of"):
        MemoryMazeConfig(textures="fine")


def test_procedural_pictures_have_the_originals_mean_colours(original_textures: Path) -> None:
    paths = texture_files.texture_paths(original_textures)
    for ours, path in zip(procedural_pictures(), paths, strict=True):
        assert ours.shape == (1024, 1024, 3)
        assert 0 <= ours.min() < ours.max() <= 255
        np.testing.assert_allclose(ours.mean((0, 1)), read_png(path).mean((0, 1)), atol=1.5)


def test_a_state_is_of_the_maze_and_not_of_its_pictures(original_textures: Path) -> None:
    assert original_textures.is_dir()
    envs = [
        MemoryMazeVectorEnv(2, config=MemoryMazeConfig(textures=textures, num_threads=1), seed=5)
        for textures in ("original", "procedural")
    ]
    pictures = [env.reset()[0] for env in envs]
    assert (pictures[0] != pictures[1]).mean() > 0.3
    envs[0].step(np.array([1, 2]))
    envs[1].set_state(envs[0].get_state())
    np.testing.assert_array_equal(envs[0].walkers(), envs[1].walkers())
