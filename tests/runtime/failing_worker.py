"""A process of a training run in which one process fails: `failing_worker.py FAULT OPTION ...`.

FAULT is kind:rank:iteration:fraction. After that many iterations the process of that rank fails, or
sends a signal; `fraction` of an iteration later, for kind `kill`. For kind `hang` it stops, as a
process does that waits for a GPU for ever, and the others are killed. For kind `slurm` SIGTERM
goes to all processes and to the launcher. For kind `evaluate` nothing fails: `fraction` is the
seconds after which operations time out, and each evaluation takes twice as long. Each process
leaves its number in RUN_DIR.pids/RANK, and its exit code in RUN_DIR.codes/RANK.
"""

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

from missing_worker import shorten_timeout

from mtxl_rl.command import value_of
from mtxl_rl.evaluation.periodic import Evaluation
from mtxl_rl.runtime import distributed
from mtxl_rl.train import main
from mtxl_rl.training.run import Run


def fail(kind: str, seconds: float) -> None:
    """What goes wrong."""
    if kind == "kill":
        threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    elif kind == "hang":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "twice":  # Ctrl-C, and again while this process is not done.
        for delay in (0.0, 1.0):
            threading.Timer(delay, os.kill, (os.getppid(), signal.SIGINT)).start()
        time.sleep(60)
    elif kind == "raise":
        raise RuntimeError("the disk is on fire")
    elif kind == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    else:  # The name of a signal for the launcher.
        os.kill(os.getppid(), getattr(signal, kind))


def inject(fault: str) -> None:
    """Let `Run.iterate` fail."""
    kind, rank, iteration, fraction = fault.split(":")
    if kind == "evaluate":
        evaluate_slowly(float(fraction))
        return
    iterate, begins = Run.iterate, list[float]()

    def failing(run: Run) -> dict[str, float]:
        begins.append(time.perf_counter())
        if len(begins) == int(iteration) + 1:
            last = begins[-1] - begins[-2] if len(begins) > 1 else 1.0
            if kind == "slurm":
                fail("terminate", 0)
            if run.world.rank == int(rank):
                fail("SIGTERM" if kind == "slurm" else kind, float(fraction) * last)
            elif kind == "hang":
                fail("kill", 1.0)
        return iterate(run)

    setattr(Run, "iterate", failing)  # noqa: B010


def evaluate_slowly(seconds: float) -> None:
    """Let operations time out after some seconds, and `Run.evaluate` take twice as long."""
    shorten_timeout(seconds)
    evaluate = Run.evaluate

    def slow(run: Run) -> Evaluation:
        time.sleep(2 * seconds)
        return evaluate(run)

    setattr(Run, "evaluate", slow)  # noqa: B010


def leave(run_dir: Path, name: str, number: object) -> None:
    """Write a number for the test."""
    path = run_dir.with_suffix(f".{name}") / os.environ["RANK"]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(number), encoding="utf-8")


if __name__ == "__main__":
    options = sys.argv[2:]
    folder = Path(value_of(options, "run_dir") or "")
    leave(folder, "pids", os.getpid())
    inject(sys.argv[1])
    distributed.TIMEOUT = timedelta(hours=1)  # The tests see whether a process waited that long.
    try:
        main(options)
    except SystemExit as end:
        leave(folder, "codes", end.code)
        raise
