"""Thousands of clients of `examples/serve.py`: each is answered as if it were alone.

python tests/reliability/load.py --clients 1000

The server is a process of its own with one row per client, and each client a connection of its own
on the loopback interface. After all have been answered once, one client too many must be refused.
Then each sends its next request as soon as it has its answer, now and then with a reset, for 1 to
64 steps. A third of them close the connection; the others vanish: between two steps, without
reading an answer, within a line; or they send a line that is not legal. Some clients that left are
followed by another one, which waits for a free row. In the end all rows must be free: as many
clients connect once more.

Every answer is compared with `Agent.act` on a cache of one row. Actions must be equal, values and
log-probabilities within 1e-4.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counts import Counts, Outcome, cases, run_program

from mtxl_rl import Agent

ROOT = Path(__file__).parents[2]
AGENT = ROOT / "pretrained/TMaze"
BOUND = 1e-4
ENDS = {
    "closes": None,
    "vanishes between steps": b"",
    "vanishes before an answer": b'{"observation": [0, 1, 0]}\n',
    "vanishes within a line": b'{"observation": [0,',
    "sends a wrong shape": b'{"observation": [0, 1]}\n',
    "sends no JSON": b"hello\n",
}
"""What a client sends last."""


class Client:
    """One connection: its requests, and their answers."""

    def __init__(self, port: int, rng: random.Random) -> None:
        self.port, self.rng = port, rng
        self.end = rng.choice([*ENDS, "closes", "closes"])
        self.num_steps = rng.choice((rng.randint(1, 12), rng.randint(1, 12), rng.randint(1, 64)))
        self.requests: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        """From a request to its answer."""
        self.num_refused = 0

    async def connect(self) -> None:
        """Connect, and have the first step answered; try again while there is no row."""
        while True:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            answer = await self.step()
            if "error" not in answer:
                return
            self.writer.close()
            self.requests.clear()
            self.num_refused += 1
            await asyncio.sleep(self.rng.random())

    async def step(self) -> dict[str, Any]:
        """Send a request, and return its answer."""
        rng = self.rng
        request = {
            "observation": [rng.choice((0.0, 1.0, rng.random())) for _ in range(3)],
            "reward": rng.choice((0.0, 1.0, rng.gauss(0, 1))),
            "reset": rng.random() < 0.05,
        }
        self.requests.append(request)
        begin = time.perf_counter()
        self.writer.write(json.dumps(request).encode() + b"\n")
        answer = json.loads(await self.reader.readuntil(b"\n"))
        if "error" not in answer:
            self.seconds.append(time.perf_counter() - begin)
            self.answers.append(answer)
        return answer

    async def play(self) -> None:
        """The steps after the first one, and the end."""
        while len(self.requests) < self.num_steps:
            await self.step()
        last = ENDS[self.end]
        if last is not None:
            self.writer.write(last)
        if self.end.startswith("sends"):
            answer = json.loads(await self.reader.readuntil(b"\n"))
            if "not a legal request" not in answer.get("error", ""):
                raise ValueError(f"{last!r} was answered by {answer}")
        if self.end.startswith("vanishes"):
            self.writer.transport.abort()
        else:
            self.writer.close()

    def compare(self, agent: Agent) -> tuple[Outcome, float]:
        """Whether all answers are those of acting alone, and the largest difference of a number."""
        if len(self.answers) != len(self.requests):
            return Outcome("failed", f"{len(self.requests) - len(self.answers)} not answered"), 0.0
        cache, largest = agent.new_cache(1), 0.0
        for step, (request, answer) in enumerate(zip(self.requests, self.answers, strict=True)):
            observation = np.array([request["observation"]], np.float32)
            is_first = np.array([request["reset"]])
            action, cache = agent.act(
                observation, cache, is_first, reward=request["reward"], greedy=True
            )
            decision = cache.decision
            largest = max(
                largest,
                abs(answer["value"] - decision.value.item()),
                abs(answer["log_prob"] - decision.log_prob.item()),
            )
            if answer["action"] != action[0] or not largest <= BOUND:
                return Outcome("failed", f"step {step}: {answer}, alone {decision}"), largest
        return Outcome("equal"), largest


async def talk(port: int, seed: int, num_clients: int) -> list[Client]:
    """Let all clients connect, then play at the same time; return them all."""
    rngs = [random.Random(f"{seed}/{case}/load") for case in range(num_clients)]
    clients = [Client(port, rng) for rng in rngs]
    for start in range(0, num_clients, 500):  # More would overflow the listener's queue.
        await asyncio.gather(*(client.connect() for client in clients[start : start + 500]))
    extra = Client(port, random.Random(f"{seed}/extra"))
    extra.reader, extra.writer = await asyncio.open_connection("127.0.0.1", port)
    answer = await extra.step()
    extra.writer.close()
    if "all rows are in use" not in answer.get("error", ""):
        raise ValueError(f"a client too many was answered by {answer}")

    async def life(client: Client) -> list[Client]:
        await client.play()
        if client.rng.random() < 0.5:
            return [client]
        following = Client(port, client.rng)
        await following.connect()
        await following.play()
        return [client, following]

    lives = await asyncio.gather(*map(life, clients))
    last = [Client(port, random.Random(f"{seed}/{case}/last")) for case in range(num_clients)]
    for start in range(0, num_clients, 500):
        await asyncio.gather(*(client.connect() for client in last[start : start + 500]))
    for client in last:
        client.end = "closes"
        client.writer.close()
    return [*(client for life in lives for client in life), *last]


def report(clients: list[Client], largest: float, seconds: float, last_line: str) -> str:
    """What was measured, in sentences."""
    waits = np.array([wait for client in clients for wait in client.seconds]) * 1000
    requests = [request for client in clients for request in client.requests]
    resets = sum(request["reset"] for request in requests)
    p50, p90, p99 = np.percentile(waits, (50, 90, 99))
    ends = Counter(client.end for client in clients)
    vanished = sum(count for end, count in ends.items() if end.startswith("vanishes"))
    return (
        f"{len(clients)} connections, of which {vanished} vanished; {len(requests)} requests, of "
        f"which {resets} reset; {sum(client.num_refused for client in clients)} connections "
        f"refused until a row was free\n"
        f"server: {last_line}\n"
        f"{len(waits) / seconds:.0f} answers/s in {seconds:.1f} s; latency p50 {p50:.0f} ms, p90 "
        f"{p90:.0f} ms, p99 {p99:.0f} ms\n"
        f"largest difference of a value or log-probability {largest:.1e}"
    )


def run(arguments: argparse.Namespace) -> list[Counts]:
    """Serve, play, and compare."""
    torch.set_num_threads(1)
    num_clients = arguments.clients
    command = [sys.executable, str(ROOT / "examples/serve.py"), str(AGENT), "--device", "cpu",
               "--port", "0", "--rows", str(num_clients)]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline().rpartition(":")[2])
            begin = time.perf_counter()
            timed = asyncio.wait_for(talk(port, arguments.seed, num_clients), 600 + num_clients)
            clients = asyncio.run(timed)
            seconds = time.perf_counter() - begin
        finally:
            server.terminate()
        last_line = server.stdout.read().strip()
    agent, counts, largest = Agent.load(AGENT, device="cpu"), Counts("load"), 0.0
    for case in cases(arguments, len(clients)):
        outcome, difference = clients[case].compare(agent)
        largest = max(largest, difference)
        counts.add(clients[case].end, f"connection {case}", outcome)
    print(report(clients, largest, seconds, last_line), flush=True)
    return [counts]


if __name__ == "__main__":
    run_program(__doc__, {"clients": 10_000}, run)
