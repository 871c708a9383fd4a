"""The terminal output in README: `python docs/screens.py` trains its first run and writes it."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
_COMMAND = re.compile(r"python -m (mtxl_rl\.evaluate checkpoint=runs/first.*)")
_SCREEN = re.compile(r"```text\n.*?```", flags=re.DOTALL)


def run(command: str, folder: Path) -> str:
    """Run a module in a folder; its standard output."""
    variables = os.environ | {"PYTHONPATH": str(README.parent)}
    result = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=folder, env=variables, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    return result.stdout


def table(output: str) -> str:
    """The rows of a printed table, without its borders."""
    rows = [line for line in output.splitlines() if line.startswith(("┃", "│"))]
    return "\n".join(rows).replace("┃", "│")


def write_screen(page: str, output: str) -> str:
    """The page with the table of an output in its only text block."""
    assert len(_SCREEN.findall(page)) == 1
    return _SCREEN.sub(f"```text\n{table(output)}\n```", page)


def main() -> None:
    """Train, evaluate, and write README."""
    page = README.read_text(encoding="utf-8")
    (options,) = re.findall(r'make train ARGS="(.*)"', page)
    (command,) = _COMMAND.findall(page)
    with tempfile.TemporaryDirectory() as folder:
        run(f"mtxl_rl.train {options}", Path(folder))
        output = run(command, Path(folder))
    page = README.read_text(encoding="utf-8")  # It may have changed since.
    README.write_text(write_screen(page, output), encoding="utf-8")


if __name__ == "__main__":
    main()
