"""Reference pages that are generated from the code: every option with its default and docstring."""

from collections.abc import Iterable
from pathlib import Path
from typing import get_origin

from mtxl_rl.command import Option, options_of
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.registry import ENVS
from mtxl_rl.evaluate import EvaluateConfig


def write_options(folder: Path) -> None:
    """Write options.md into a folder."""
    folder.mkdir(exist_ok=True)
    sections = [
        "# Options",
        "Generated from the dataclasses' docstrings. `--help` of a command prints the same list.",
        "## Training: `python -m mtxl_rl.train env=NAME`",
        *_table(options_of(TrainConfig)),
        "## Environments",
        *(
            part
            for name, entry in sorted(ENVS.items())
            for part in (
                f"### `env.*` of {name}",
                *_table(options_of(entry.config_class, prefix="env.")),
            )
        ),
        "## Evaluation: `python -m mtxl_rl.evaluate checkpoint=RUN_DIR`",
        *_table(options_of(EvaluateConfig)),
    ]
    (folder / "options.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")


def _table(options: Iterable[Option]) -> list[str]:
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for option in options:
        meaning = " ".join(option.description.split()).replace("|", "\\|").replace("``", "`")
        rows.append(
            f"| `{option.name}` | {_type(option.type)} | `{option.default!r}` | {meaning} |"
        )
    return ["\n".join(rows)]


def _type(kind: object) -> str:
    return str(kind) if get_origin(kind) else getattr(kind, "__name__", str(kind))
