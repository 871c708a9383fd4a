"""Print the table of all tasks: `python -m mtxl_rl.envs`."""

import argparse
import sys
from collections.abc import Sequence

from mtxl_rl.envs.registry import ENVS
from mtxl_rl.envs.tasks.catalog import TASKS, TaskEntry

TABLE_HEADER = (
    "| task | horizon | return | must be remembered | memory needed if the window is under |",
    "|---|---|---|---|---|",
)


def table() -> str:
    """Return a Markdown table of the tasks' variants, then the other environments' names."""
    rows = [row for task in TASKS.values() for row in table_rows(task)]
    others = ", ".join(f"env={name}" for name in ENVS if name not in TASKS)
    return "\n".join([*TABLE_HEADER, *rows, "", f"From packages: {others}."])


def table_rows(task: TaskEntry) -> list[str]:
    """Return the table's row of each variant of a task."""
    rows = []
    for settings, config in zip(task.variants, task.configs(), strict=True):
        horizon, (low, high), remembered, window = config.describe()
        options = "".join(f" env.{key}={value}" for key, value in settings.items())
        rows.append(
            f"| env={task.name}{options} | {horizon:,} | {low:g} .. {high:g} | {remembered} | "
            f"{window:,} |"
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or the help."""
    parser = argparse.ArgumentParser(
        prog="python -m mtxl_rl.envs",
        description="Print a table of all tasks and of their variants, in Markdown.",
    )
    _, unknown = parser.parse_known_args(arguments)
    if unknown:
        sys.exit(
            f"error: python -m mtxl_rl.envs takes no options and got {' '.join(unknown)}: remove "
            "them to print the table of all tasks"
        )
    sys.stdout.write(table() + "\n")


if __name__ == "__main__":
    main()
