"""The example server: each client is answered as if it were alone."""

import asyncio
import json
import random
import runpy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtxl_rl import Agent

ROOT = Path(__file__).parent.parent
NUM_ROWS = 5
Connect = Callable[[], Awaitable["Client"]]


class Client:
    """A connection, and the same episode acted alone."""

    def __init__(
        self, agent: Agent, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.agent, self.reader, self.writer = agent, reader, writer
        self.cache = agent.new_cache(1)

    async def send(self, line: bytes) -> dict[str, Any]:
        """The answer to a line."""
        self.writer.write(line)
        return json.loads(await self.reader.readline())

    async def step(self, rng: random.Random) -> None:
        """Send a random observation; the answer must be that of acting alone."""
        observation, reward = [rng.random() for _ in range(3)], rng.random()
        request = {"observation": observation, "reward": reward, "reset": rng.random() < 0.1}
        answer = await self.send(json.dumps(request).encode() + b"\n")
        action, _ = self.agent.act(
            np.array([observation], np.float32),
            self.cache,
            np.array([request["reset"]]),
            reward=reward,
            greedy=True,
        )
        assert answer["action"] == action[0]
        for name in ("value", "log_prob"):
            expected = getattr(self.cache.decision, name).item()
            assert answer[name] == pytest.approx(expected, abs=1e-5)


def with_server(talk: Callable[[Connect], Awaitable[None]]) -> None:
    """Run `talk` with a server of `NUM_ROWS` rows in this process; all rows must be free after."""
    agent = Agent.load(ROOT / "pretrained/TMaze", device="cpu")
    server = runpy.run_path(str(ROOT / "examples/serve.py"))["Server"](agent, NUM_ROWS)
    clients: list[Client] = []

    async def run() -> None:
        listener = await server.listen("127.0.0.1", 0)
        port = listener.sockets[0].getsockname()[1]
        steps = asyncio.create_task(server.step_forever())

        async def connect() -> Client:
            clients.append(Client(agent, *await asyncio.open_connection("127.0.0.1", port)))
            return clients[-1]

        await talk(connect)
        for client in clients:
            client.writer.close()
        while sorted(server.free) != list(range(NUM_ROWS)):
            await asyncio.sleep(0.01)
        steps.cancel()
        listener.close()
        await listener.wait_closed()

    asyncio.run(asyncio.wait_for(run(), 120))


@pytest.mark.training
def test_clients_that_come_and_vanish_are_answered_as_if_alone() -> None:
    rng = random.Random(0)

    async def play(connect: Connect) -> None:
        for _ in range(4):
            client = await connect()
            for _ in range(rng.randint(1, 40)):
                await client.step(rng)
                if rng.random() < 0.3:
                    await asyncio.sleep(0)  # Others are faster.
            client.writer.write(rng.choice((b"", b'{"observation": [0, 0, 1]}\n', b'{"observ')))
            client.writer.transport.abort()
            while client.writer.transport.get_extra_info("socket").fileno() >= 0:
                await asyncio.sleep(0)

    async def talk(connect: Connect) -> None:
        await asyncio.gather(*(play(connect) for _ in range(NUM_ROWS - 1)))

    with_server(talk)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"hello\n", "JSONDecodeError"),
        (b"[1]\n", "TypeError"),
        (b'{"observation": [0, 0]}\n', "is not in Box"),
        (b'{"observation": [0, 0, NaN]}\n', "is not in Box"),
        (b'{"observation": [0, 0, 1], "reward": NaN}\n', "the reward is nan"),
        (b'{"observation": [0, 0, 1], "wish": 1}\n', "its fields are"),
        (b"[" * 100_000 + b"\n", "not a legal request"),
    ],
)
def test_a_line_that_is_not_legal_ends_its_own_connection(line: bytes, reason: str) -> None:
    async def talk(connect: Connect) -> None:
        client, other = await connect(), await connect()
        await client.step(random.Random(1))
        assert reason in (await other.send(line))["error"]
        assert await other.reader.read() == b""
        await client.step(random.Random(2))

    with_server(talk)


def test_a_client_too_many_is_refused() -> None:
    async def talk(connect: Connect) -> None:
        clients = [await connect() for _ in range(NUM_ROWS)]
        for client in clients:
            await client.step(random.Random(1))
        extra = await connect()
        answer = await extra.send(b'{"observation": [0, 0, 1]}\n')
        assert "all rows are in use" in answer["error"]

    with_server(talk)
