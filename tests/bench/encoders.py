"""Image encoders on Memory Maze's pictures: microseconds a picture, acting and learning.

python tests/bench/encoders.py

Acting encodes 64 pictures without gradients, learning 2,048 with the backward pass, on one thread.
The encoders are timed in turns; the table shows medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from mtxl_rl.agents.encoders import IMAGE_ENCODERS, ImageEncoder

SHAPE = (64, 64, 3)


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def act(encoder: ImageEncoder, pictures: torch.Tensor) -> None:
    """Encode without gradients."""
    with torch.no_grad():
        encoder(pictures)


def learn(encoder: ImageEncoder, pictures: torch.Tensor) -> None:
    """Encode, and propagate gradients to the weights."""
    encoder(pictures).sum().backward()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoders = {name: ImageEncoder(SHAPE, arguments.width, kind=name) for name in IMAGE_ENCODERS}
    cases = {"acting": (act, 64), "learning": (learn, 2048)}
    pictures = {
        name: torch.randint(0, 256, (rows, *SHAPE), dtype=torch.uint8)
        for name, (_, rows) in cases.items()
    }
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(arguments.rounds + 1):
        for name, encoder in encoders.items():
            for case, (step, _) in cases.items():
                elapsed = seconds(lambda: step(encoder, pictures[case]))  # noqa: B023
                times.setdefault((name, case), []).append(elapsed)
    print("| encoder | acting, us a picture | learning, us a picture |\n|---|---|---|")
    for name in encoders:
        columns = [
            statistics.median(times[name, case][1:]) / rows * 1e6
            for case, (_, rows) in cases.items()
        ]
        print(f"| {name} | {columns[0]:,.0f} | {columns[1]:,.0f} |")


if __name__ == "__main__":
    main()
