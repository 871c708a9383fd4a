"""Processes that lost one of them name it, and wait for process 0 as long as it works."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

WORKER = str(Path(__file__).with_name("missing_worker.py"))
TIMEOUT = 8
"""Seconds after which an operation fails."""


def errors(fault: str, rank: int, *options: str, has_launcher: bool = True) -> dict[int, str]:
    """What each of three processes prints, without the faulty one.

    Without a launcher, process 0 holds the store. See `missing_worker.py` for the arguments.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    store = None
    if has_launcher:
        store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    variables = {
        "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": str(has_launcher),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, WORKER, fault, str(rank), str(TIMEOUT), *options],
            env=os.environ | variables | {"RANK": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(3)
    ]
    try:
        return {
            number: process.communicate(timeout=300)[1]
            for number, process in enumerate(processes)
            if number != rank
        }
    finally:
        for process in processes:
            process.kill()
            process.communicate()
        del store


@pytest.mark.processes
@pytest.mark.parametrize(
    ("fault", "rank", "options"),
    [
        ("stop", 1, []),
        ("stop", 1, ["meet"]),
        ("kill", 0, []),
        pytest.param("kill", 0, ["meet"], marks=pytest.mark.slow),
        pytest.param("stop", 0, [], marks=pytest.mark.slow),
        pytest.param("stop", 0, ["meet"], marks=pytest.mark.slow),
    ],
)
def test_the_processes_that_are_left_name_the_missing_one(
    fault: str, rank: int, options: list[str]
) -> None:
    printed = errors(fault, rank, *options)
    assert len(printed) == 2
    for message in printed.values():
        assert message.startswith("lost another process of the run: "), message
        assert message.endswith(f"; process {rank} of 3 does not answer\n"), message


@pytest.mark.slow
def test_a_store_in_a_process_that_hangs_does_not_hang_the_others() -> None:
    printed = errors("stop", 0, has_launcher=False)
    assert len(printed) == 2
    for message in printed.values():
        assert message.startswith("lost another process of the run: "), message
        assert message.endswith("process 0 holds, does not answer\n"), message


@pytest.mark.processes
@pytest.mark.parametrize("options", [[], ["meet"]])
def test_process_0_may_work_for_longer_than_the_timeout(options: list[str]) -> None:
    assert errors("sleep", 0, *options) == {1: "", 2: ""}
