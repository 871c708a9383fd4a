"""Print the table of all tasks: `python -m mtxl_rl.envs`."""

import sys

from mtxl_rl.envs.registry import ENVS
from mtxl_rl.envs.tasks.catalog import TASKS


def table() -> str:
    """Return a Markdown table of the tasks' variants, then the other environments' names."""
    lines = [
        "| task | horizon | return | must be remembered | memory needed if the window is under |",
        "|---|---|---|---|---|",
    ]
    for name, task in TASKS.items():
        for settings, config in zip(task.variants, task.configs(), strict=True):
            horizon, (low, high), remembered, window = config.describe()
            options = "".join(f" env.{key}={value}" for key, value in settings.items())
            lines.append(
                f"| env={name}{options} | {horizon:,} | {low:g} .. {high:g} | {remembered} | "
                f"{window:,} |"
            )
    others = ", ".join(f"env={name}" for name in ENVS if name not in TASKS)
    return "\n".join([*lines, "", f"From packages: {others}."])


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(
            f"python -m mtxl_rl.envs takes no options and got {' '.join(sys.argv[1:])}: remove "
            "them to print the table of all tasks"
        )
    sys.stdout.write(table() + "\n")
