"""Train and evaluate the runs of a suite, and write a report: `python -m mtxl_rl.suite`."""

import shlex
import sys
from collections.abc import Sequence

from mtxl_rl.command import Command, choices, options_of, run_command
from mtxl_rl.evaluation.suite_runner import Suite, SuiteConfig, run_suite
from mtxl_rl.tracking.cli import print_line

USAGE = f"""\
python -m mtxl_rl.suite suite=NAME [option=value ...]

TRAINS one run per task, torso and seed, evaluates each run, and writes a report. This can take
hours or days: the first line printed is the number of runs and steps. The same command continues a
suite that was interrupted, and does not repeat finished runs.

Suites: {", ".join(choices("suite"))}, or the path of a YAML file of the same form.
"""


def plan(suite: Suite) -> str:
    """One sentence: how many runs and steps are left to train, and how many runs to evaluate."""
    runs = suite.runs()
    steps = [round(suite.total_steps[run.task] * (1 - run.progress())) for run in runs]
    num_trained = sum(count > 0 for count in steps)
    return (
        f"{suite.name}: {len(suite.tasks)} tasks x {len(suite.torsos)} torsos x {suite.seeds} seeds"
        f" = {len(runs)} runs. Training {num_trained} of them for {sum(steps):,} steps in total, "
        f"then evaluating; {suite.jobs} processes; results in {suite.folder}"
    )


def run(config: SuiteConfig) -> None:
    """Train what is missing of a suite, evaluate all of it, and write the report.

    Raises:
        ImportError: the packages of the report are not installed.
        RuntimeError: runs failed; the message names them.
        SystemExit: a signal stopped it; the exit code is 128 + the signal's number.
    """
    try:
        from mtxl_rl.evaluation.report import write_report
    except ImportError as error:
        raise ImportError(f"a suite needs {error.name}: pip install 'mtxl_rl[report]'") from error
    suite = Suite.load(config)
    command = ["python", "-m", "mtxl_rl.suite", *sys.argv[1:]]
    print_line(plan(suite))
    try:
        failed = run_suite(suite)
    except KeyboardInterrupt as stop:
        print_line(f"Stopped; {stop.args[1]}; continue with: {shlex.join(command)}")
        raise SystemExit(128 + stop.args[0]) from None
    print_line(f"report: {write_report(suite, command=command)}")
    if failed:
        raise RuntimeError("; ".join(failed))


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    command = Command(usage=USAGE, options=options_of(SuiteConfig), base=SuiteConfig)
    run_command(argv, describe=lambda _: command, run=run)


if __name__ == "__main__":
    main()
