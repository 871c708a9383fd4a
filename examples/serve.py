"""Serve a trained agent on a socket: `python examples/serve.py pretrained/TMaze`.

A connection is an episode with a memory of its own. A client sends lines of JSON, and each line is
answered by one:

    {"observation": [0, 1, 0]}                    the first step of an episode
    {"action": 2, "value": 0.93, "log_prob": -0.01}
    {"observation": [0, 0, 1], "reward": 0.0}     a later step, with the reward of the last action
    {"observation": [0, 1, 0], "reset": true}     the first step of a new episode

The action is the most probable one, or the mean. Requests that arrive while the network runs are
answered together by its next step. A request that is not legal is answered by {"error": SENTENCE},
and its connection is closed. Each connection needs a file descriptor (`ulimit -n`).

The server neither encrypts nor asks for a password: listen to other machines (`--host`) in a
trusted network only.
"""

import argparse
import asyncio
import json
import math
import signal
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from mtxl_rl import Agent

MAX_BATCH = 1024
"""Requests that one step answers; the others wait for the next step."""
MAX_LINE = 2**22
"""Bytes of a request."""


class Request(NamedTuple):
    """One step of one episode."""

    observation: dict[str, NDArray[Any]]
    """By leaf; the leaf of a space that is not a Dict has the name "observation"."""
    reward: float
    is_first: bool
    """Whether the observation starts an episode."""


def parse(line: bytes, space: spaces.Space[Any]) -> Request:
    """The request in a line.

    Raises:
        ValueError: the line is not a legal request.
    """
    try:
        fields = {"reward": 0.0, "reset": False} | json.loads(line)
        if fields.keys() != {"observation", "reward", "reset"}:
            raise ValueError(f"its fields are {', '.join(fields)}")
        leaves, values = {"observation": space}, fields
        if isinstance(space, spaces.Dict):
            leaves, values = space.spaces, fields["observation"]
        observation = {key: to_array(values[key], leaf) for key, leaf in leaves.items()}
        reward = float(fields["reward"])
        if not math.isfinite(reward):
            raise ValueError(f"the reward is {reward}")
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"not a legal request ({type(error).__name__}: {error}); send a line of JSON with "
            f"observation, of {space}, and where needed reward (a number) and reset (true, false)"
        ) from error
    return Request(observation, reward, bool(fields["reset"]))


def to_array(value: Any, leaf: spaces.Space[Any]) -> NDArray[Any]:  # noqa: ANN401
    """An observation's leaf, if the policy can read it; the bounds of a Box are not checked."""
    raw = np.asarray(value)
    array = raw.astype(leaf.dtype)
    if isinstance(leaf, spaces.Box):
        is_legal = array.shape == leaf.shape and np.isfinite(array).all()
    else:
        is_legal = leaf.contains(array)
    if not is_legal or (array.dtype.kind in "iu" and not (array == raw).all()):
        raise ValueError(f"{value} is not in {leaf}")
    return array


class Server:
    """Episodes of one agent, each in a row of its cache, stepped together as requests arrive.

    Args:
        agent: acts.
        num_rows: connections at a time.
    """

    def __init__(self, agent: Agent, num_rows: int) -> None:
        self.agent = agent
        self.cache = agent.new_cache(num_rows)
        self.free = list(range(num_rows))
        self.waiting: list[tuple[int, Request, asyncio.Future[dict[str, Any]]]] = []
        self.has_waiting = asyncio.Event()
        self.num_answers = self.num_batches = 0

    async def listen(self, host: str, port: int) -> asyncio.Server:
        """Accept clients, whose requests `step_forever` answers."""
        return await asyncio.start_server(self.talk, host, port, limit=MAX_LINE, backlog=4096)

    async def serve(self, host: str, port: int) -> None:
        """Serve until cancelled."""
        server = await self.listen(host, port)
        address, port = server.sockets[0].getsockname()[:2]
        print(f"serving {len(self.free)} episodes on {address}:{port}", flush=True)
        # An error in a step ends the server; clients would wait for their answers otherwise.
        async with server, asyncio.TaskGroup() as tasks:
            tasks.create_task(server.serve_forever())
            tasks.create_task(self.step_forever())

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client until it leaves."""
        row, is_first = self.free.pop() if self.free else -1, True
        try:
            while True:
                line = await reader.readuntil(b"\n")
                if row < 0:
                    raise ValueError(
                        "all rows are in use; connect later, or start with more --rows"
                    )
                request = parse(line, self.agent.observation_space)
                request = request._replace(is_first=request.is_first or is_first)
                writer.write(to_line(await self.answer(row, request)))
                await writer.drain()
                is_first = False
        except ValueError as error:
            writer.write(to_line({"error": str(error)}))
        except asyncio.LimitOverrunError:
            writer.write(to_line({"error": f"the line is longer than {MAX_LINE:,} bytes"}))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # The client has left, perhaps within a line, or the server ends.
        finally:
            if row >= 0:
                self.free.append(row)
            writer.close()

    async def answer(self, row: int, request: Request) -> dict[str, Any]:
        """The answer to a request, once a step has included it."""
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append((row, request, answer))
        self.has_waiting.set()
        return await answer

    async def step_forever(self) -> None:
        """Answer the requests that have arrived since the last step, again and again."""
        while await self.has_waiting.wait():
            batch, self.waiting = self.waiting[:MAX_BATCH], self.waiting[MAX_BATCH:]
            if not self.waiting:
                self.has_waiting.clear()
            rows, requests, futures = zip(*batch, strict=True)
            # In a thread, so that requests are read meanwhile.
            answers = await asyncio.to_thread(self.step, rows, requests)
            for future, answer in zip(futures, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
            self.num_answers += len(answers)
            self.num_batches += 1

    def step(self, rows: Sequence[int], requests: Sequence[Request]) -> list[dict[str, Any]]:
        """Act in these rows; the memories of the others stay as they are."""
        part = self.cache.rows(rows)
        observation: Any = {
            key: np.stack([request.observation[key] for request in requests])
            for key in requests[0].observation
        }
        if not isinstance(self.agent.observation_space, spaces.Dict):
            observation = observation["observation"]
        is_first = np.array([request.is_first for request in requests])
        reward = np.array([request.reward for request in requests])
        actions, part = self.agent.act(observation, part, is_first, reward=reward, greedy=True)
        self.cache.copy_rows_(rows, part)
        values, log_probs = part.decision.value.tolist(), part.decision.log_prob.tolist()
        return [
            {"action": action, "value": value, "log_prob": log_prob}
            for action, value, log_prob in zip(actions.tolist(), values, log_probs, strict=True)
        ]


def to_line(answer: dict[str, Any]) -> bytes:
    """An answer as a line of JSON."""
    return json.dumps(answer).encode() + b"\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("agent", help="a run's folder, a checkpoint or a policy.safetensors")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, default=7777, help="0: any that is free")
    parser.add_argument("--rows", type=int, default=1024, help="connections at a time")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto")
    arguments = parser.parse_args()
    server = Server(Agent.load(arguments.agent, device=arguments.device), arguments.rows)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # It ends as after Ctrl-C.
    try:
        asyncio.run(server.serve(arguments.host, arguments.port))
    except KeyboardInterrupt:
        print(f"{server.num_answers} requests answered in {server.num_batches} steps")


if __name__ == "__main__":
    main()
