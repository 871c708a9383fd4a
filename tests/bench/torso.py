"""Torsos alone: steps/s of acting, samples/s of learning, memory, and what long memories cost.

python tests/bench/torso.py --threads 1                 every table
python tests/bench/torso.py --tables sizes,horizon      some of them

- sizes: over window, width, layers and batch. Learning is forward and backward of one span.
- horizon: microseconds per step of one row with 1e2 .. 1e6 steps behind it, of which at most two
  windows are really taken: from there on nothing in the state grows.
- latency: one row of the base model over windows, the rows in turns.
- share: long-term memory's part of the learner's time, by the torso without it.
- peers: at the same width and layers torch's LSTM and GRU, sb3-contrib's LSTM core, TorchRL's
  recurrent modules (none of its transformers keeps a state), x-transformers and a plain decoder
  whose cache holds every step of the episode.

Medians of rounds in turns. Wall time counts what others do on the machine; `--cpu` counts this
process's processor time instead.
"""

import argparse
import importlib.util
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mtxl_rl.runtime.compile import compile_layers
from mtxl_rl.torso import MemoryTransformer, Torso, TorsoConfig, build_torso

TABLES = ("sizes", "horizon", "latency", "share", "peers")
Work = Callable[[], object]


class Decoder(nn.Module):
    """A plain causal transformer that keeps the keys and values of every step of the episode."""

    def __init__(self, width: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.layers = nn.ModuleList(
            nn.ModuleDict({
                "norm": nn.LayerNorm(width), "qkv": nn.Linear(width, 3 * width),
                "output": nn.Linear(width, width), "norm2": nn.LayerNorm(width),
                "expand": nn.Linear(width, 2 * width), "contract": nn.Linear(2 * width, width),
            })
            for _ in range(num_layers)
        )  # fmt: skip

    def forward(
        self, x: Tensor, cache: list[tuple[Tensor, Tensor]] | None = None, *, past: int = 0
    ) -> Tensor:
        """T steps of an episode, or with a cache the one step after `past` of them."""
        for n, layer in enumerate(self.layers):
            q, k, v = (
                part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
                for part in layer["qkv"](layer["norm"](x)).chunk(3, dim=-1)
            )
            if cache is not None:
                for kept, new in zip(cache[n], (k, v), strict=True):
                    kept[:, :, past] = new[:, :, 0]
                k, v = (kept[:, :, : past + 1] for kept in cache[n])
            out = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
            x = x + layer["output"](out.transpose(1, 2).flatten(2))
            x = x + layer["contract"](torch.relu(layer["expand"](layer["norm2"](x))))
        return x


class Bench:
    """Times work in turns with a clock that fits the device."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device(arguments.device)
        self.rounds, self.seconds = arguments.rounds, arguments.seconds
        self.clock = time.process_time if arguments.cpu else time.perf_counter
        self.compiles: bool = arguments.compile

    def time(self, works: Sequence[Work]) -> list[float]:
        """Median seconds of each, measured in turns, as often as `seconds` of a round allow."""
        counts = []
        for work in works:
            self._spent(work, 3)
            counts.append(max(1, int(self.seconds / self._spent(work, 2) * 2)))
        rounds = [
            [self._spent(work, count) / count for work, count in zip(works, counts, strict=True)]
            for _ in range(self.rounds)
        ]
        return [statistics.median(column) for column in zip(*rounds, strict=True)]

    def _spent(self, work: Work, count: int) -> float:
        self._wait()
        begun = self.clock()
        for _ in range(count):
            work()
        self._wait()
        return max(self.clock() - begun, 1e-9)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def acting(self, torso: Torso, batch: int, *, behind: int = 0) -> Work:
        """One step of acting of `batch` rows that have taken at least `behind` steps."""
        config, cache = torso.config, torso.prefill(torso.initial_state(batch))
        x = torch.randn(batch, config.width, device=self.device)
        none_first = torch.zeros(batch, dtype=torch.bool, device=self.device)
        for _ in range(min(behind, 2 * config.window_length)):
            torso.decode_step(x, cache, none_first)
        if isinstance(torso, MemoryTransformer):
            cache.segment_step.fill_(behind % config.segment_length)
        return lambda: torso.decode_step(x, cache, none_first)

    def learning(self, torso: Torso, batch: int, num_steps: int) -> Work:
        """Forward and backward of one span of `batch` rows."""
        x = torch.randn(batch, num_steps, torso.config.width, device=self.device)
        none_first = torch.zeros(batch, num_steps, dtype=torch.bool, device=self.device)
        state = torso.initial_state(batch)
        weights = list(torso.parameters())

        def work() -> None:
            y, _ = torso(x, state, none_first)
            torch.autograd.grad(y.square().sum(), weights, allow_unused=True)

        return work


def build(bench: Bench, **sizes: int | str) -> Torso:
    """A torso on the bench's device; four heads up to width 128, heads of 32 above."""
    width = int(sizes.get("width", 128))
    options = {"num_layers": 3, "segment_length": 32, "num_heads": max(4, width // 32)} | sizes
    torso = build_torso(TorsoConfig(**options)).to(bench.device)  # type: ignore[arg-type]
    if bench.compiles and isinstance(torso, MemoryTransformer):
        compile_layers(torso)
        torso.decode_step = torch.compile(torso.decode_step, fullgraph=True)
    return torso


def sizes(bench: Bench, *, quick: bool) -> None:
    """Acting and learning over window, width, layers and batch."""
    print("\n| width | layers | window | rows | act steps/s | learner samples/s | peak MB |")
    print("|---|---|---|---|---|---|---|")
    cases = [(64, 2, 64, 8)] if quick else [
        *((128, 3, window, 32) for window in (64, 256, 1024)),
        *((width, 3, 64, 32) for width in (64, 256, 512)),
        (128, 1, 64, 32), (128, 6, 64, 32), (128, 3, 64, 1), (128, 3, 64, 128),
    ]  # fmt: skip
    for width, layers, window, batch in cases:
        torso = build(bench, width=width, num_layers=layers, window_length=window)
        rows = max(1, batch // 4)
        act, learn = bench.time([bench.acting(torso, batch), bench.learning(torso, rows, 128)])
        print(f"| {width} | {layers} | {window} | {batch} | {batch / act:,.0f} | "
              f"{rows * 128 / learn:,.0f} | {peak_megabytes(bench.device):,.0f} |",
              flush=True)  # fmt: skip


def peak_megabytes(device: torch.device) -> float:
    """Of the device so far, or of the process on a CPU: it only grows over a table."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def horizon(bench: Bench, *, quick: bool) -> None:
    """Cost per step of one row as its episode grows."""
    horizons = [100, 1000] if quick else [10**n for n in range(2, 7)]
    torso = build(bench, width=128, window_length=64)
    seconds = bench.time([bench.acting(torso, 1, behind=behind) for behind in horizons])
    print(f"\n| steps behind | {' | '.join(f'{n:,}' for n in horizons)} |")
    print("|---" * (len(horizons) + 1) + "|")
    print(f"| us per step | {' | '.join(f'{1e6 * each:,.0f}' for each in seconds)} |", flush=True)


def latency(bench: Bench, *, quick: bool) -> None:
    """One row of the base model over windows, with a million steps behind it."""
    windows = [32, 64] if quick else [64, 256, 1024]
    width = 64 if quick else 256
    torsos = [build(bench, width=width, window_length=window) for window in windows]
    seconds = bench.time([bench.acting(torso, 1, behind=10**6) for torso in torsos])
    print(f"\n| window, width {width}, one row | ms per step | of the first |\n|---|---|---|")
    for window, each in zip(windows, seconds, strict=True):
        print(f"| {window} | {1e3 * each:.2f} | {each / seconds[0]:.2f} |", flush=True)


def share(bench: Bench, *, quick: bool) -> None:
    """Long-term memory's part of the learner's time."""
    kinds: dict[str, dict[str, str]] = {
        "none": {"long_term": "none"},
        "delta": {},
        "delta, read in parallel": {"read": "parallel"},
    }
    if not quick:
        kinds |= {
            "linear": {"long_term": "linear", "decay": "fixed"},
            **{kind: {"long_term": kind} for kind in ("agalite", "slots", "tokens")},
        }
    print("\n| width | long-term memory | learner samples/s | its share of the time |")
    print("|---|---|---|---|")
    for width in (64,) if quick else (128, 256):
        torsos = [build(bench, width=width, window_length=64, **kind) for kind in kinds.values()]
        seconds = bench.time([bench.learning(torso, 8, 128) for torso in torsos])
        for kind, each in zip(kinds, seconds, strict=True):
            share = "" if kind == "none" else f"{1 - seconds[0] / each:.0%}"
            print(f"| {width} | {kind} | {8 * 128 / each:,.0f} | {share} |", flush=True)


def peers(bench: Bench, *, quick: bool) -> None:
    """Other cores of the same width and layers, one span of 128 steps, 32 rows acting."""
    batch, width, layers = 32, 128, 3
    cases: dict[str, tuple[Work, Work]] = {}
    for name, kind in {
        "mtxl": {"window_length": 64},
        "gtrxl": {"window_length": 64, "long_term": "none"},
        "lstm (ours)": {"kind": "lstm"},
        "gru (ours)": {"kind": "gru"},
    }.items():
        torso = build(bench, width=width, num_layers=layers, **kind)  # type: ignore[arg-type]
        cases[name] = (bench.acting(torso, batch), bench.learning(torso, 8, 128))
    for name, cell in {"torch LSTM": nn.LSTM, "torch GRU": nn.GRU}.items():
        core = cell(width, width, layers, batch_first=True).to(bench.device)
        cases[name] = plain(bench, lambda x, core=core: core(x)[0], core, batch, width)
    decoder = Decoder(width, layers, 4).to(bench.device)
    for past in (64,) if quick else (64, 1000, 10_000):
        cases[f"decoder, {past:,} steps cached"] = (
            cached(bench, decoder, batch, width, past),
            plain(bench, decoder, decoder, batch, width)[1],
        )
    cases |= installed_peers(bench, batch, width, layers)
    times = bench.time([work for pair in cases.values() for work in pair])
    print("\n| core, width 128, 3 layers | act steps/s, 32 rows | learner samples/s |")
    print("|---|---|---|")
    for i, name in enumerate(cases):
        act, learn = times[2 * i : 2 * i + 2]
        acted = "-" if name.startswith("x-") else f"{batch / act:,.0f}"
        print(f"| {name} | {acted} | {8 * 128 / learn:,.0f} |", flush=True)


def installed_peers(
    bench: Bench, batch: int, width: int, layers: int
) -> dict[str, tuple[Work, Work]]:
    """The cores of other libraries, of those that are installed."""
    cases: dict[str, tuple[Work, Work]] = {}
    if importlib.util.find_spec("sb3_contrib"):
        cases["sb3-contrib LSTM core"] = sb3_core(bench, batch, width, layers)
    if importlib.util.find_spec("torchrl"):
        from torchrl.modules import GRUModule, LSTMModule

        for name, module in {"LSTMModule": LSTMModule, "GRUModule": GRUModule}.items():
            cases[f"TorchRL {name}"] = torchrl_core(bench, module, batch, width, layers)
    if importlib.util.find_spec("x_transformers"):
        from x_transformers import Decoder as Layers

        core = Layers(dim=width, depth=layers, heads=4, attn_dim_head=32).to(bench.device)
        cases["x-transformers decoder"] = (
            lambda: None,
            plain(bench, core, core, batch, width)[1],
        )
    return cases


def plain(
    bench: Bench, core: Callable[[Tensor], Tensor], module: nn.Module, batch: int, width: int
) -> tuple[Work, Work]:
    """One step without gradients, and forward and backward of 8 rows of 128 steps."""
    step = torch.randn(batch, 1, width, device=bench.device)
    x = torch.randn(8, 128, width, device=bench.device)
    weights = list(module.parameters())

    def act() -> None:
        with torch.no_grad():
            core(step)

    def learn() -> None:
        torch.autograd.grad(core(x).square().sum(), weights, allow_unused=True)

    return act, learn


def cached(bench: Bench, decoder: Decoder, batch: int, width: int, past: int) -> Work:
    """One step of the plain decoder after `past` steps."""
    heads = decoder.num_heads
    shape = (batch, heads, past + 1, width // heads)
    cache = [tuple(torch.randn(2, *shape, device=bench.device)) for _ in decoder.layers]
    step = torch.randn(batch, 1, width, device=bench.device)

    def act() -> None:
        with torch.no_grad():
            decoder(step, cache, past=past)  # type: ignore[arg-type]

    return act


def sb3_core(bench: Bench, batch: int, width: int, layers: int) -> tuple[Work, Work]:
    """RecurrentPPO's way through an LSTM, with no episode starting inside."""
    from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy

    lstm = nn.LSTM(width, width, layers).to(bench.device)
    run = RecurrentActorCriticPolicy._process_sequence
    weights = list(lstm.parameters())

    def through(rows: int, num_steps: int) -> Tensor:
        x = torch.randn(num_steps * rows, width, device=bench.device)
        zeros = torch.zeros(layers, rows, width, device=bench.device)
        return run(x, (zeros, zeros), torch.zeros(num_steps * rows, device=bench.device), lstm)[0]

    def act() -> None:
        with torch.no_grad():
            through(batch, 1)

    def learn() -> None:
        torch.autograd.grad(through(8, 128).square().sum(), weights)

    return act, learn


def torchrl_core(
    bench: Bench, module: Callable[..., nn.Module], batch: int, width: int, layers: int
) -> tuple[Work, Work]:
    """A recurrent module of TorchRL by steps and over a span, with no episode starting inside."""
    from tensordict import TensorDict
    from torchrl.modules import set_recurrent_mode

    core = module(
        input_size=width, hidden_size=width, num_layers=layers, in_key="x", out_key="y"
    ).to(bench.device)
    states = [str(key) for key in core.in_keys[1:-1]]  # type: ignore[index]
    weights = list(core.parameters())

    def inputs(*shape: int) -> TensorDict:
        entries = {
            "x": torch.randn(*shape, width, device=bench.device),
            "is_init": torch.zeros(*shape, 1, dtype=torch.bool, device=bench.device),
            **{key: torch.zeros(*shape, layers, width, device=bench.device) for key in states},
        }
        return TensorDict(entries, batch_size=shape, device=bench.device)

    step, span = inputs(batch), inputs(8, 128)

    def act() -> None:
        with torch.no_grad(), set_recurrent_mode(mode=False):
            outputs = core(step.clone(recurse=False))["next"]
        step.update(outputs.select(*states))

    def learn() -> None:
        with set_recurrent_mode(mode=True):
            y = core(span.clone(recurse=False))["y"]
        torch.autograd.grad(y.square().sum(), weights)

    return act, learn


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.3, help="of each round of a case")
    parser.add_argument("--cpu", action="store_true", help="count processor time")
    parser.add_argument("--compile", action="store_true", help="our transformers")
    parser.add_argument("--quick", action="store_true", help="few and small cases")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    bench = Bench(arguments)
    clock = "processor" if arguments.cpu else "wall"
    print(f"{arguments.device}, {arguments.threads} threads, {arguments.precision}, {clock} time")
    is_narrow = arguments.precision == "bfloat16"
    with torch.autocast(bench.device.type, dtype=torch.bfloat16, enabled=is_narrow):
        for table in arguments.tables.split(","):
            globals()[table](bench, quick=arguments.quick)


if __name__ == "__main__":
    main()
