"""What the programs of this folder share: outcomes, counts, and the command line."""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

LONGEST_SENTENCE = 4000
"""Characters; a longer message is a dump, not a sentence."""


class Outcome(NamedTuple):
    """How a case ended."""

    name: str
    """A column of the table; `failed` is a fault of the library."""
    detail: str = ""


class Counts:
    """Outcomes by kind of case; failures are printed when they occur."""

    prints_all = False

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: dict[str, Counter[str]] = {}

    def add(self, kind: str, case: object, outcome: Outcome) -> None:
        """Count a case; `case` is what a reader needs to repeat it."""
        self.rows.setdefault(kind, Counter())[outcome.name] += 1
        if outcome.name == "failed" or self.prints_all:
            print(f"{outcome.name} {kind}: {case}\n{outcome.detail.rstrip()}\n", flush=True)

    @property
    def num_failed(self) -> int:
        """Faults of the library."""
        return sum(row["failed"] for row in self.rows.values())

    def table(self) -> str:
        """Markdown with a row for each kind, and the total."""
        columns = sorted({name for row in self.rows.values() for name in row} - {"failed"})
        rows = dict(sorted(self.rows.items()))
        if len(rows) > 1:
            rows["total"] = sum(self.rows.values(), Counter())
        header = ["kind", "cases", *columns, "failed"]
        cells = [
            [kind, row.total(), *(row[name] for name in columns), row["failed"]]
            for kind, row in rows.items()
        ]
        lines = [header, ["---"] * len(header), *cells]
        return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def call(function: Callable[[], object], *, accepted: str = "accepted") -> Outcome:
    """Call a function that must return, or raise one of the library's errors in one sentence."""
    try:
        function()
    except (ValueError, OSError) as error:
        return sentence(str(error))
    except Exception:
        return Outcome("failed", traceback.format_exc())
    return Outcome(accepted)


def command(main: Callable[[list[str]], object], argv: Sequence[str]) -> Outcome:
    """Run a command line in this process: it must end well, or with one sentence and code 1."""
    stdout, stderr = io.StringIO(), io.StringIO()
    code: object = 0
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            main(list(argv))
    except SystemExit as end:
        code = end.code
    except Exception:
        return Outcome("failed", traceback.format_exc())
    message = stderr.getvalue()
    if not code:
        return Outcome("accepted", stdout.getvalue())
    if code != 1 or not message.startswith("error: ") or not message.endswith("\n"):
        return Outcome("failed", f"exit code {code}\n{message}")
    return sentence(message.removeprefix("error: ")[:-1])


def sentence(message: str) -> Outcome:
    """Refused, if the message is one line of a sentence's length."""
    if not message.strip() or "\n" in message or len(message) > LONGEST_SENTENCE:
        return Outcome("failed", f"not one sentence: {message!r}")
    return Outcome("refused", message)


def cases(arguments: argparse.Namespace, size: int) -> Iterable[int]:
    """The numbers of the cases to run: those from `--first` on, or the one that `--case` names."""
    return range(arguments.first, size) if arguments.case is None else [arguments.case]


def run_program(
    description: str | None,
    sizes: dict[str, int],
    run: Callable[[argparse.Namespace], list[Counts]],
) -> None:
    """Parse `--seed` and an option for each size, run in a folder, print the tables.

    MTXL_RL_RELIABILITY, a number, multiplies the sizes. The exit code is 1 after a failure.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="skip the cases before this one")
    parser.add_argument("--case", type=int, help="repeat this case alone, and print its outcome")
    parser.add_argument("--json", help="write the counts to this file")
    parser.add_argument("--folder", help="work here and keep it; without it, in a temporary folder")
    factor = float(os.environ.get("MTXL_RL_RELIABILITY", "1"))
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=max(1, round(size * factor)))
    arguments = parser.parse_args()
    options = " ".join(f"--{name} {getattr(arguments, name)}" for name in sizes)
    first = f"--first {arguments.first} " if arguments.first else ""
    print(f"python {sys.argv[0]} --seed {arguments.seed} {first}{options}", flush=True)
    begin = time.monotonic()
    if arguments.case is not None:
        Counts.prints_all = True
    if arguments.folder:
        Path(arguments.folder).mkdir(parents=True, exist_ok=True)
        folder = contextlib.nullcontext(arguments.folder)
    else:
        folder = tempfile.TemporaryDirectory()
    with folder as path, contextlib.chdir(path):
        tables = run(arguments)
    for counts in tables:
        print(f"\n{counts.title}\n\n{counts.table()}")
    print(f"\n{time.monotonic() - begin:.0f} s")
    if arguments.json:
        document = {counts.title: counts.rows for counts in tables}
        Path(arguments.json).write_text(json.dumps(document, indent=1))
    raise SystemExit(any(counts.num_failed for counts in tables))
