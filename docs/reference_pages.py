"""Reference pages that are generated from the code: the options, and a page for each task."""

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import get_origin

from mtxl_rl.command import Option, options_of
from mtxl_rl.compare import CompareConfig
from mtxl_rl.compose import env_name
from mtxl_rl.config import TrainConfig
from mtxl_rl.envs.__main__ import TABLE_HEADER, table_rows
from mtxl_rl.envs.registry import ENVS
from mtxl_rl.envs.tasks.catalog import TASKS, TaskEntry
from mtxl_rl.evaluation.evaluate_config import EvaluateConfig
from mtxl_rl.evaluation.suite_runner import SuiteConfig
from mtxl_rl.export import ExportConfig
from mtxl_rl.get_textures import TexturesConfig
from mtxl_rl.hub import PullConfig, PushConfig
from mtxl_rl.language_model.train_config import TrainLMConfig
from mtxl_rl.play import PlayConfig
from mtxl_rl.train import EXPECTED

ROOT = Path(__file__).parents[1]
PRESETS = ROOT / "mtxl_rl/configs/env"
COMMANDS: dict[str, type] = {
    "Evaluation: `python -m mtxl_rl.evaluate checkpoint=RUN_DIR`": EvaluateConfig,
    "Comparing runs: `python -m mtxl_rl.compare RUN_DIR RUN_DIR`": CompareConfig,
    "Playing without an agent: `python -m mtxl_rl.play env=NAME`": PlayConfig,
    "Memory Maze's textures: `python -m mtxl_rl.get_textures`": TexturesConfig,
    "Suites: `python -m mtxl_rl.suite suite=NAME`": SuiteConfig,
    "Exporting: `python -m mtxl_rl.export checkpoint=RUN_DIR`": ExportConfig,
    "Sharing: `python -m mtxl_rl.hub push checkpoint=RUN_DIR to=FOLDER`": PushConfig,
    "Receiving: `python -m mtxl_rl.hub pull source=hf://USER/NAME output=FOLDER`": PullConfig,
    "Language model: `python -m mtxl_rl.train_lm`": TrainLMConfig,
}
_FIELDS = "Rules|Source|Observations?|Actions?|Rewards?|Episode length"


def write_options(folder: Path) -> None:
    """Write options.md into a folder."""
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
        *(
            part
            for title, schema in COMMANDS.items()
            for part in (f"## {title}", *_table(options_of(schema)))
        ),
    ]
    _write(folder / "options.md", sections)


def write_tasks(folder: Path) -> None:
    """Write a page for each built-in task and for Memory Maze into a folder, and an index of them.

    The pages show NAME.gif next to them.
    """
    maze = "../../images/memory_maze.gif"
    _write(folder / "MemoryMaze.md", ["# MemoryMaze", f"![MemoryMaze]({maze})", *_maze_sections()])
    gallery = ["| task | to remember | picture |", "|---|---|---|"]
    gallery.append(f"| [MemoryMaze](MemoryMaze.md) | a maze and 3 to 6 spheres | ![]({maze}) |")
    for name, task in TASKS.items():
        sections = [
            f"# {name}",
            f"![{name} under random actions]({name}.gif)",
            "Random actions. The picture also shows what the agent does not see.",
            *_rules_sections(_docstring(task)),
            "## Settings",
            "\n".join([*TABLE_HEADER, *table_rows(task)]),
            *_preset_sections(name),
            *_result_sections(name),
        ]
        _write(folder / f"{name}.md", sections)
        remembered = task.configs()[0].describe().remembered
        gallery.append(f"| [{name}]({name}.md) | {remembered} | ![]({name}.gif) |")
    pages = ["MemoryMaze", *TASKS]
    toctree = ["```{toctree}", ":hidden:", "", *pages, "```"]
    intro = (
        "The built-in tasks. MemoryMaze shows the explorer, a player that knows only what it has "
        "seen; the other pictures show random actions. [tasks.md](../../tasks.md) compares their "
        "settings, and lists tasks of other packages."
    )
    _write(folder / "index.md", ["# Gallery", intro, "\n".join(gallery), "\n".join(toctree)])


def convert_fences(lines: list[str]) -> None:
    """Turn a docstring's Markdown code fences into reStructuredText, in place."""

    def directive(fence: re.Match[str]) -> str:
        indent, language, code = fence.groups()
        return f"{indent}.. code-block:: {language}\n\n{textwrap.indent(code, '    ')}"

    fences = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)
    lines[:] = fences.sub(directive, "\n".join(lines)).split("\n")


def _write(path: Path, sections: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")


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


def _maze_sections() -> list[str]:
    # Imported here because numba takes a moment.
    from mtxl_rl.envs.memory_maze.vector import MemoryMazeVectorEnv

    rules = inspect.getdoc(MemoryMazeVectorEnv) or ""
    return [
        "Left: what the agent observes. Right: the maze from above, dark where the player has not "
        "seen it. The player is the explorer, which learns nothing and remembers all that it has "
        "seen. [memory_maze.md](../../memory_maze.md) describes the commands and the variants.",
        *_rules_sections(rules.partition("\n\nArgs:")[0]),
        *_preset_sections("MemoryMaze"),
        *_result_sections("MemoryMaze"),
    ]


def _docstring(task: TaskEntry) -> str:
    """A task's section of its module's docstring, or all of it if that describes one task."""
    text = inspect.getdoc(inspect.getmodule(task.task_class)) or ""
    section = re.search(rf"^{task.name}\n((?:    .*\n?|\n)+)", text, flags=re.MULTILINE)
    return textwrap.dedent(section[1]).strip() if section else text


def _rules_sections(docstring: str) -> list[str]:
    """The rules as a paragraph for each field; docstrings are reStructuredText."""
    fields = re.sub(rf"^({_FIELDS}):", r"\n**\1:**", docstring, flags=re.MULTILINE)
    return ["## Rules", f"````{{eval-rst}}\n{fields}\n````"]


def _preset_sections(name: str) -> list[str]:
    """The presets whose environment is this task, and a link to its options."""
    options = f"[Options `env.*`](../options.md#env-of-{name.lower()})"
    sections = ["## Presets", f"{options}. `python -m mtxl_rl.train env=NAME` takes a preset:"]
    for path in sorted(PRESETS.glob("*.yaml"), key=attrgetter("stem")):
        if env_name(path.stem) == name:
            text = path.read_text(encoding="utf-8")
            sections.append(f"`env={path.stem}`:\n\n```yaml\n{text}```")
    return sections


def _result_sections(name: str) -> list[str]:
    """The rows and remarks of RESULTS.md that begin with a task's name.

    Without any, what `mtxl_rl.train` prints of the task at its start, or that there are none.
    """
    text = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
    results = text.partition("## Memory Maze against the original")[0]
    blocks = [block for block in results.split("\n\n") if "|" in block or "- " in block]
    selected = [part for block in blocks if (part := "\n".join(_lines_about(name, block)))]
    if not selected:
        expected = EXPECTED.get(
            name,
            "None with today's options; [earlier versions]"
            "(../../experiments/2026-11-30-results-of-earlier-versions.md) have some.",
        )
        return ["## Results", expected[0].upper() + expected[1:]]
    source = "From [RESULTS.md](../../../RESULTS.md), which has the settings of all results."
    return ["## Results", source, *(part.replace("](docs/", "](../../") for part in selected)]


def _lines_about(name: str, block: str) -> Iterator[str]:
    """The rows of a Markdown table, with its header, or the items of a list, about a task."""
    is_table = block.startswith("|")
    items = block.splitlines() if is_table else re.split(r"\n(?=- )", block)
    is_about = [_begins_with(name, item) for item in items]
    if any(is_about):
        yield from items[: 2 if is_table else 0]
        yield from (item for item, keep in zip(items, is_about, strict=True) if keep)


def _begins_with(name: str, item: str) -> bool:
    """Whether a row or a list item begins with a name; Endless T-maze is EndlessTMaze."""
    letters = re.sub(r"[^A-Za-z0-9]", "", item[: 2 * len(name) + 8])
    return letters.lower().startswith(name.lower())
