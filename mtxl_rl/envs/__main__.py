"""Print the table of all tasks: `python -m mtxl_rl.envs`."""

import sys
from collections.abc import Sequence

from mtxl_rl.envs.registry import ENVS
from mtxl_rl.envs.tasks.catalog import TASKS, TaskEntry

USAGE = "python -m mtxl_rl.envs     print a Markdown table of all tasks and of their variants\n"
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
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(USAGE)
    elif arguments:
        sys.exit(
            f"error: python -m mtxl_rl.envs takes no options and got {' '.join(arguments)}: remove "
            "them to print the table of all tasks"
        )
    else:
        sys.stdout.write(table() + "\n")


if __name__ == "__main__":
    main()
