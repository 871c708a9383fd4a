"""Get Memory Maze's original textures: `python -m mtxl_rl.get_textures`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mtxl_rl.command import Command, options_of, run_command
from mtxl_rl.envs.memory_maze.texture_files import (
    download_textures,
    original_folder,
    unpack_textures,
)
from mtxl_rl.tracking.cli import print_line

USAGE = """\
python -m mtxl_rl.get_textures                Memory Maze's original pictures of walls and floors
python -m mtxl_rl.get_textures wheel=FILE     the same without a network
"""


@dataclass(kw_only=True, slots=True)
class TexturesConfig:
    """The options of `mtxl_rl.get_textures`."""

    wheel: str = ""
    """Unpack the pictures of this wheel of labmaze; empty: download one, unless the pictures are on
    this machine."""


def run(config: TexturesConfig) -> None:
    """Get the pictures, and print their folder."""
    if config.wheel:
        folder = unpack_textures(Path(config.wheel))
    else:
        folder = original_folder() or download_textures()
    print_line(f"Memory Maze's original textures are in {folder}")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    command = Command(usage=USAGE, options=options_of(TexturesConfig), base=TexturesConfig)
    run_command(argv, describe=lambda _: command, run=run)


if __name__ == "__main__":
    main()
