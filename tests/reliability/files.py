"""Damaged and hostile files: each load succeeds, or raises one clear error and runs no code.

python tests/reliability/files.py --bytes 3000 --contents 2000 --resumed 100
python tests/reliability/files.py --case 17                  repeat one case of each table

The files are those of a run (checkpoint, policy.safetensors, config.yaml, metrics.jsonl, run.json)
and of a language model's run. `bytes` changes their bytes: flipped bits, cut ends, inserted and
zeroed bytes. `contents` writes well-formed files whose contents are wrong: other types, missing and
unknown keys, deep nesting, code in pickles, names that leave the folder, huge shapes, links.
`resumed` continues runs with such contents by the command line. A load may raise ValueError or
OSError in one line. `changed` counts loads that succeed with other contents. A load may not
allocate more than `MEMORY` bytes, nor create a file.
"""

import argparse
import copy
import hashlib
import io
import json
import pickle
import random
import resource
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from counts import Counts, Outcome, call, cases, command, run_program

from mtxl_rl import load_torso, train, train_lm
from mtxl_rl.config_files import load_config
from mtxl_rl.saved_agent import read_agent
from mtxl_rl.tracking import checkpoint
from mtxl_rl.tracking.metrics import MetricsLogger, read_rows
from mtxl_rl.tracking.run_record import read_record

MEMORY = 500_000_000
"""Bytes by which a load may raise the process's peak."""
LIMIT = 6_000_000_000
"""Bytes of address space that loads may add to the process's own."""
MARKER = Path("code_was_run")
TINY = ["model=tiny", "num_envs=4", "ppo.rollout_length=16", "torso.window_length=4", "device=cpu",
        "torso.segment_length=4", "ppo.bptt_segments=2", "torso.width=16", "torso.num_heads=2",
        "ppo.num_epochs=1", "ppo.num_minibatches=2", "logger=none", "num_processes=1", "env=TMaze",
        "env.corridor_length=3", "compile=false"]  # fmt: skip
TINY_LM = ["num_characters=3000", "gap=5", "updates=2", "batch_size=2", "dim=8", "heads=2",
           "seq_len=4", "mem_len=4", "segments=2", "evaluate_every=1"]  # fmt: skip
RUN, LM = Path("run"), Path("lm")


class Code:
    """Creates the marker when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (MARKER.absolute(),)


def load_checkpoint(path: Path) -> object:
    """The state, and the agent that the file describes."""
    state = checkpoint.load(path)
    read_agent(path).build_policy(torch.device("cpu"))
    return state


def load_policy(path: Path) -> object:
    """The agent and its policy; then the torso alone."""
    agent = read_agent(path)
    agent.build_policy(torch.device("cpu"))
    return agent.config, dict(load_torso(path).state_dict()), agent.weights


def load_metrics(path: Path) -> object:
    """The rows, as they are read, and as a resumed run keeps them."""
    if path.exists():  # Otherwise it would be created.
        with MetricsLogger(path.parent, loggers=()) as logger, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger.truncate_after(128)
    return read_rows(path.parent)


LOADERS: dict[Path, Callable[[Path], object]] = {
    RUN / "checkpoints" / "step_000000000128.pt": load_checkpoint,
    RUN / "policy.safetensors": load_policy,
    RUN / "config.yaml": lambda path: load_config(path.parent),
    RUN / "metrics.jsonl": load_metrics,
    RUN / "run.json": lambda path: read_record(path.parent),
    LM / "model.safetensors": lambda path: load_torso(path).state_dict(),
}
FILES = list(LOADERS)


def digest(value: object) -> str:
    """A hash of everything in a tree of containers, tensors and plain values."""
    if isinstance(value, torch.Tensor):
        if value.numel() > 10**8:  # A view of a few numbers.
            return "huge"
        parts = [str(value.dtype), str(tuple(value.shape)), str(value.flatten().tolist())]
    elif isinstance(value, dict):
        parts = [f"{key!r}: {digest(item)}" for key, item in value.items()]
    elif isinstance(value, list | tuple):
        parts = [digest(item) for item in value]
    else:
        parts = [repr(value)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def damaged(content: bytes, kind: str, rng: random.Random) -> bytes:
    """The content of a file after a fault of a disk, a copy or an editor."""
    data, at = bytearray(content), rng.randrange(len(content))
    if kind == "bit flips":
        for _ in range(rng.choice((1, 1, 1, 2, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[at if rng.random() < 0.9 else 0 :]
    elif kind == "inserted":
        at = rng.choice((0, at, len(data)))
        data[at:at] = rng.randbytes(rng.choice((1, 7, 4096)))
    elif kind == "removed":
        del data[at : at + rng.choice((1, 16, 512))]
    else:
        size = min(rng.choice((1, 512, 4096)), len(data) - at)
        data[at : at + size] = bytes(size)
    return bytes(data)


DAMAGES = ("bit flips", "cut", "inserted", "removed", "zeroed")
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 3.5, "x", "", "../../x", [], {}, [[]], {"a": 1}, 2**70, 10**12, float("nan"),
    ["x"], "NaN", -(2**63), 100_000, "\n", "\x00",
)  # fmt: skip


def wrong_tensor(tensor: torch.Tensor, rng: random.Random) -> object:
    """Another tensor, or no tensor."""
    return rng.choice(
        (tensor.double(), tensor.reshape(-1)[:1], tensor.reshape(-1), tensor[None], torch.zeros(0),
         tensor.bool(), torch.tensor(3), torch.zeros(1).expand(2**40), 1.0, None)
    )  # fmt: skip


def with_a_wrong_value(tree: Any, rng: random.Random, *, tensors: bool) -> Any:  # noqa: ANN401
    """A copy in which one value, at any depth, is replaced, removed or added."""
    tree = copy.deepcopy(tree)
    node = tree
    while isinstance(node, dict | list) and node:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        child = node[key]
        is_leaf = not (isinstance(child, dict | list) and child)
        if is_leaf or rng.random() < 0.25:
            break
        node = child
    else:
        return rng.choice(WRONG)
    action = rng.choice(("replace", "replace", "remove", "add"))
    if action == "remove":
        del node[key]
    elif action == "add" and isinstance(node, dict):
        node[rng.choice(("unknown", 7, "../x"))] = rng.choice(WRONG)
    elif tensors and isinstance(child, torch.Tensor):
        node[key] = wrong_tensor(child, rng)
    else:
        node[key] = rng.choice(WRONG)
    return tree


def mutable(tree: Any) -> Any:  # noqa: ANN401
    """The tree with lists for tuples, and dicts for their subclasses."""
    if isinstance(tree, dict):
        return {key: mutable(item) for key, item in tree.items()}
    return [mutable(item) for item in tree] if isinstance(tree, list | tuple) else tree


def split_safetensors(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header, sorted because its order differs from file to file, and the weights."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True)
    return json.loads(header), content[8 + length :]


def join_safetensors(header: object, weights: bytes) -> bytes:
    """The content of a file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + weights


def wrong_safetensors(content: bytes, rng: random.Random) -> bytes:
    """A file whose header, or whose description of the agent, is wrong."""
    header, weights = split_safetensors(content)
    texts = header["__metadata__"]
    kind = rng.choice(("header", "shape", "description", "description", "length", "deep"))
    if kind == "header":
        header = with_a_wrong_value(header, rng, tensors=False)
    elif kind == "shape":
        tensor = header[rng.choice([name for name in header if name != "__metadata__"])]
        tensor["shape"] = rng.choice(([2**40], [2**62, 4], [0], [-1], [1] * 1000, [2**31, 2**31]))
        if rng.random() < 0.5:
            tensor["data_offsets"] = [0, rng.choice((2**62, 2**40, 4))]
    elif kind == "description":
        name = rng.choice(list(texts))
        texts[name] = json.dumps(with_a_wrong_value(json.loads(texts[name]), rng, tensors=False))
    elif kind == "deep":
        texts[rng.choice(list(texts))] = "[" * 100_000
    else:
        return struct.pack("<Q", rng.choice((2**63, 2**40, 0, 10**8))) + content[8:]
    return join_safetensors(header, weights)


def wrong_checkpoint(content: bytes, rng: random.Random) -> bytes:
    """A checkpoint that torch.save wrote, with wrong contents, code or names of files."""
    document = mutable(torch.load(io.BytesIO(content), weights_only=True))
    kind = rng.choice(("value", "value", "description", "code", "names"))
    if kind == "names":
        return renamed_entries(content, rng)
    state = document["state"]
    if kind == "description":
        description = with_a_wrong_value(json.loads(state["description"]), rng, tensors=False)
        state["description"] = rng.choice((json.dumps(description), "[" * 100_000, "", b"x"))
    elif kind == "code":
        target = rng.choice((document, state, state["agent"], state["agent"]["policy"]))
        target[rng.choice([*target, "new"])] = Code()
    else:
        document = with_a_wrong_value(document, rng, tensors=True)
    if kind == "code" and rng.random() < 0.3:
        return pickle.dumps(document)
    buffer = io.BytesIO()
    torch.save(document, buffer)
    return buffer.getvalue()


def renamed_entries(content: bytes, rng: random.Random) -> bytes:
    """The archive with entries whose names leave its folder, or are doubled."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            prefix = rng.choice(("../../", "/tmp/", "x/")) if name == chosen else ""
            new.writestr(prefix + name, old.read(name))
        new.writestr("../../escaped", b"x")
    return buffer.getvalue()


def wrong_text(content: bytes, suffix: str, rng: random.Random) -> bytes:
    """JSON, lines of JSON or YAML with wrong contents."""
    text = content.decode()
    if rng.random() < 0.1:  # PyYAML takes minutes for 10,000 levels.
        depth = 1000 if suffix == ".yaml" else 100_000
        return (rng.choice(("[", "{a: ", '{"a":', "- ")) * depth + "\n").encode()
    if suffix == ".yaml":
        if rng.random() < 0.1:
            return text.replace("seed: 0", BILLION_LAUGHS).encode()
        if rng.random() < 0.1:
            return text.replace("seed: 0", f"seed: {rng.choice(YAML_TAGS)}").encode()
        document = with_a_wrong_value(yaml.safe_load(text), rng, tensors=False)
        return yaml.safe_dump(document, allow_unicode=True).encode()
    if suffix == ".jsonl":
        lines = [json.loads(line) for line in text.splitlines()]
        return "".join(
            f"{json.dumps(with_a_wrong_value(line, rng, tensors=False))}\n" for line in lines
        ).encode()
    return json.dumps(with_a_wrong_value(json.loads(text), rng, tensors=False)).encode()


LAUGHS = "\n".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" if n else "a0: &a0 [x]" for n in range(10)
)
BILLION_LAUGHS = f"{LAUGHS}\nseed: 0"
YAML_TAGS = ("!!python/object/apply:os.system ['touch code_was_run']", "!!python/name:os.system",
             "!!binary x", "&a [*a]", "${oc.env:HOME}", "${oc.create:${.seed}}")  # fmt: skip


def linked(path: Path, rng: random.Random) -> str:
    """Replace a file by a link or a folder; return which."""
    targets = {
        "a dangling link": "no_such_file", "a link to itself": path.name,
        "a link to a folder": "/", "a link to a device": "/dev/zero",
        "a link out of the folder": "/etc/passwd",
    }  # fmt: skip
    kind = rng.choice([*targets, "a folder"])
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    else:
        path.symlink_to(targets[kind])
    return kind


def wrong_contents(path: Path, rng: random.Random) -> None:
    """Replace a file by a well-formed one of its kind with wrong contents, or by a link."""
    content = path.read_bytes()
    if rng.random() < 0.1:
        linked(path, rng)
    elif path.suffix == ".pt":
        path.write_bytes(wrong_checkpoint(content, rng))
    elif path.suffix == ".safetensors":
        path.write_bytes(wrong_safetensors(content, rng))
    else:
        path.write_bytes(wrong_text(content, path.suffix, rng))


def watched(function: Callable[[], Outcome]) -> Outcome:
    """Run a case; code that ran, a file that appeared, or too much memory is a failure."""
    before = set(Path().rglob("*"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcome = function()
    growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    created = set(Path().rglob("*")) - before
    if MARKER.exists():
        MARKER.unlink()
        return Outcome("failed", "the file's code was run")
    if growth > MEMORY:
        return Outcome("failed", f"{growth:,} bytes more were allocated; {outcome}")
    if created:
        return Outcome("failed", f"created {created}")
    return outcome


def loaded(path: Path, expected: str) -> Outcome:
    """Load a file with its loader, and compare what it returns with the original's hash."""
    values = list[object]()
    outcome = call(lambda: values.append(LOADERS[path](path)))
    if outcome.name != "accepted":
        return outcome
    return Outcome("unchanged" if digest(values[0]) == expected else "changed")


def restore(original: Path, path: Path) -> None:
    """Copy the original file over the damaged one."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    shutil.copy(original, path)


def prepare() -> dict[Path, str]:
    """Train the runs whose files are damaged, keep copies, return each file's hash as loaded."""
    train.main([*TINY, f"run_dir={RUN}", "total_steps=128"])
    train_lm.main([*TINY_LM, f"run_dir={LM}"])
    for folder in (RUN, LM):
        shutil.copytree(folder, Path("originals") / folder)
    hashes = {path: digest(LOADERS[path](path)) for path in FILES}
    soft = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    address_space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (max(soft, address_space) + LIMIT, hard))
    return hashes


def load_damaged(arguments: argparse.Namespace, hashes: dict[Path, str]) -> list[Counts]:
    """Load files after each change of bytes and of contents."""
    tables = list[Counts]()
    for title, size in (("bytes", arguments.bytes), ("contents", arguments.contents)):
        counts = Counts(f"files: {title}")
        for case in cases(arguments, size):
            rng = random.Random(f"{arguments.seed}/{case}/{title}")
            path = FILES[case % len(FILES)]
            kind = ""
            if title == "bytes":
                kind = rng.choice(DAMAGES)
                path.write_bytes(damaged(path.read_bytes(), kind, rng))
            else:
                wrong_contents(path, rng)
            outcome = watched(lambda path=path: loaded(path, hashes[path]))
            name = f"{path.name.split('_')[0].replace('step', 'checkpoint')}"
            counts.add(f"{name}{', ' if kind else ''}{kind}", f"case {case}", outcome)
            restore(Path("originals") / path, path)
        tables.append(counts)
    return tables


def resume_damaged(arguments: argparse.Namespace) -> Counts:
    """Continue runs whose checkpoint has wrong contents, with the command lines."""
    counts = Counts("files: resumed")
    for case in cases(arguments, arguments.resumed):
        rng = random.Random(f"{arguments.seed}/{case}/resumed")
        path, main, steps = (
            (FILES[0], train.main, "total_steps=192"),
            (LM / "checkpoint.pt", train_lm.main, "updates=3"),
        )[case % 2]
        folder = Path("resumed")
        shutil.copytree(RUN if case % 2 == 0 else LM, folder)
        file = folder / path.relative_to(path.parts[0])
        if case % 2:
            wrong_lm_checkpoint(file, rng)
        else:
            wrong_contents(file, rng)
        before = set(Path().rglob("*"))
        outcome = command(main, [f"resume={folder}", steps])
        if MARKER.exists():
            outcome = Outcome("failed", f"the file's code was run; {before}")
            MARKER.unlink()
        counts.add(path.parts[0], f"case {case}", outcome)
        shutil.rmtree(folder)
    return counts


def wrong_lm_checkpoint(path: Path, rng: random.Random) -> None:
    """Damage a language model's checkpoint in one of the ways of this program."""
    content = path.read_bytes()
    if rng.random() < 0.3:
        path.write_bytes(damaged(content, rng.choice(DAMAGES), rng))
        return
    state = mutable(torch.load(path, weights_only=True))
    if rng.random() < 0.2:
        state[rng.choice([*state, "new"])] = Code()
    else:
        state = with_a_wrong_value(state, rng, tensors=True)
    torch.save(state, path)


def run(arguments: argparse.Namespace) -> list[Counts]:
    """Prepare the runs, and load their files."""
    hashes = prepare()
    return [*load_damaged(arguments, hashes), resume_damaged(arguments)]


if __name__ == "__main__":
    run_program(__doc__, {"bytes": 3000, "contents": 2000, "resumed": 100}, run)
