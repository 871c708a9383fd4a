"""torch.compile and torch.export of a step and of a segment, in processes of their own.

The shape checks that the tests hook into the package do not compile; a fresh process has none.
"""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

import gymnasium
import pytest
import torch

from mtxl_rl.agents.policy import Policy, PolicyConfig, PolicyInputs
from mtxl_rl.runtime.compile import compiled
from mtxl_rl.torso import TorsoConfig

SCRIPT = """
import io
import sys
from pathlib import Path
import torch
from mtxl_rl.torso import MemoryTransformer, TorsoConfig
from mtxl_rl.torso.torso_config import SlotsConfig, SublayersConfig

how, name, num_steps = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = {
    "delta": {},
    "agalite": {"long_term": "agalite"},
    "slots": {"long_term": "slots"},
    "shared": {"long_term": "slots", "slots": SlotsConfig(is_shared=True)},
    "tokens": {"long_term": "tokens", "position": "rotary"},
    "glu": {"long_term": "none", "sublayers": SublayersConfig(glu=True)},
}[name]
torch.set_num_threads(1)
torch.manual_seed(0)
sizes = {"width": 8, "num_layers": 1, "num_heads": 2, "window_length": 4, "segment_length": 4}
torso = MemoryTransformer(TorsoConfig(**sizes, **options))
x, is_first = torch.randn(2, num_steps, 8), torch.rand(2, num_steps) < 0.2
before = torso.initial_state(2)
_, before = torso(torch.randn(2, 6, 8), before, torch.zeros(2, 6, dtype=torch.bool))
before = before.detach()
expected, expected_state = torso(x, before, is_first)
if how == "export":
    rows = {0: torch.export.Dim("batch", max=4096)}
    shapes = (rows, type(before)(*[rows] * len(before)), rows)
    several = [part.repeat_interleave(3, 0) for part in (x, *before, is_first)]
    arguments = several[0], type(before)(*several[1:-1]), several[-1]
    exported = torch.export.export(torso, arguments, dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(exported, file)
    file.seek(0)
    # Its guards' names clash in torch 2.13: state.window and state.window_length.
    run = torch.export.load(file).module(check_guards=False)
elif how == "library":
    run = torso
    torso.compile_layers()
    torso.compile_step()
    memory = torso.begin(before)
    acted = [torso.act(x[:, t], memory, is_first[:, t]) for t in range(num_steps)]
    torch.testing.assert_close(torch.stack(acted, 1), expected)
    for found, field in zip(memory.state(), expected_state, strict=True):
        torch.testing.assert_close(found, field)
    around = torch.compile(torso, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(around(x, before, is_first)[0], expected)
else:
    run = torch.compile(torso, fullgraph=True, backend=how)
y, state = run(x, before, is_first)
torch.testing.assert_close(y, expected)
for found, field in zip(state, expected_state, strict=True):
    torch.testing.assert_close(found, field)
if how != "export":
    weight = torch.randn_like(y)
    weights = dict(torso.named_parameters())
    gradients = [
        torch.autograd.grad((out * weight).sum(), list(weights.values()), materialize_grads=True)
        for out in (expected, y)
    ]
    for name, plain, found in zip(weights, *gradients, strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5,
                                   msg=lambda told, name=name: f"{name}: {told}")
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_steps", [1, 10])
@pytest.mark.parametrize(
    ("how", "name"),
    [
        ("inductor", "delta"),
        ("inductor", "agalite"),
        ("inductor", "slots"),
        ("inductor", "shared"),
        ("inductor", "tokens"),
        ("inductor", "glu"),
        ("library", "delta"),
        ("export", "delta"),
        ("export", "shared"),
    ],
)
def test_a_torso_compiles_whole_and_computes_the_same(how: str, name: str, num_steps: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how, name, str(num_steps)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "others",
    [
        [],
        ["torso=slots", "torso.slots.is_shared=true", "torso.gradient_checkpointing=true",
         "env_groups=2"],
    ],
)  # fmt: skip
def test_a_compiled_run_learns_what_a_plain_one_learns(tmp_path: Path, others: list[str]) -> None:
    # Its timelines slide and its episodes end; acting and learning in one rollout must agree.
    options = [
        "env=TMaze", "env.corridor_length=9", "model=tiny", "num_envs=4", "device=cpu",
        "torso.num_layers=2", "torso.window_length=4", "torso.segment_length=4", "num_threads=2",
        "ppo.rollout_length=16", "ppo.bptt_segments=4", "total_steps=192", *others,
    ]  # fmt: skip
    runs = []
    for compiles in ("false", "true"):
        folder = tmp_path / compiles
        command = [sys.executable, "-m", "mtxl_rl.train", *options]
        done = subprocess.run(
            [*command, f"compile={compiles}", f"profile={compiles}", f"run_dir={folder}"],
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        assert "c-shim" not in done.stderr
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        runs.append([json.loads(line) for line in lines])
    assert "whole step" in done.stdout + done.stderr
    assert len(runs[0]) == 3
    for plain, fast in zip(*runs, strict=True):
        assert fast["ppo/ratio_deviation"] < 1e-5
        for name in ("loss/policy", "loss/value", "ppo/entropy", "ppo/grad_norm"):
            assert fast[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-5), name


def test_a_copy_of_a_compiled_policy_runs_its_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mtxl_rl.agents.policy", "mtxl_rl.torso.memory_transformer"):
        monkeypatch.setattr(f"{module}.compiled", lambda call, *_, **__: call)
    sizes = {"width": 8, "num_layers": 1, "num_heads": 2, "window_length": 4, "segment_length": 4}
    spaces = gymnasium.spaces.Box(-1, 1, (3,)), gymnasium.spaces.Discrete(2)
    policy = Policy(*spaces, torso=TorsoConfig(**sizes), policy=PolicyConfig())
    policy.compile_acting()
    policy.compile_learning()
    copy = deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.torso.parameters():
            parameter.zero_()
    calm = torch.zeros(2, dtype=torch.bool)
    inputs = PolicyInputs({"obs": torch.ones(2, 3)}, torch.zeros(2, 1).long(), 0.0 * calm, calm)
    steps = PolicyInputs({"obs": torch.ones(2, 1, 3)}, *(field[:, None] for field in inputs[1:]))
    for one, is_empty in ((policy, True), (copy, False)):
        state = one.torso.initial_state(2)
        torch.manual_seed(0)
        acted = one.act(inputs, one.begin(state)).value
        learned, _ = one(steps, state)
        torch.testing.assert_close(acted, learned.value[:, 0])
        assert bool((acted == acted[0]).all())
        assert (float(acted.detach().abs().max()) == 0) == is_empty


def test_more_sizes_than_are_compiled_run_plain_and_are_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def double(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
        return 2 * x, torch.compiler.is_compiling()

    compile_it = torch.compile  # By the cheapest of its backends.
    monkeypatch.setattr(torch, "compile", lambda call, *, options, **how: (  # noqa: ARG005
        compile_it(call, backend="eager", **how)
    ))  # fmt: skip
    monkeypatch.setattr("mtxl_rl.runtime.compile.MAX_GRAPHS", 2)
    call = compiled(double, torch.device("cpu"), for_learning=True)
    sizes = (1, 2, 3, 1, 4)
    with pytest.warns(UserWarning, match="more than 2 sets of shapes .* fewer") as told:
        results = [call(torch.ones(size)) for size in sizes]
    assert len(told) == 1
    assert [was_compiled for _, was_compiled in results] == [True, True, False, True, False]
    for size, (doubled, _) in zip(sizes, results, strict=True):
        assert torch.equal(doubled, torch.full((size,), 2.0))


def test_zeros_and_ones_of_any_type_mark_where_episodes_start() -> None:
    # In a process of its own: here, the type checker of the tests would refuse them.
    code = """
import torch
from mtxl_rl.agents.returns import gae
from mtxl_rl.torso import TorsoConfig, build_torso
for kind in ("transformer", "gru"):
    torso = build_torso(TorsoConfig(kind=kind, width=16, num_layers=1, num_heads=2,
                                    window_length=4, segment_length=4))
    x, first = torch.randn(2, 8, 16), torch.rand(2, 8) < 0.4
    expected, _ = torso(x, torso.initial_state(2), first)
    for dtype in (torch.uint8, torch.int64, torch.float32):
        given = first.to(dtype)
        found, _ = torso(x, torso.initial_state(2), given)
        memory = torso.begin(torso.initial_state(2))
        acted = torch.stack([torso.act(x[:, t], memory, given[:, t]) for t in range(8)], 1)
        assert (found - expected).abs().max() < 1e-6, (kind, dtype)
        assert (acted - expected).abs().max() < 1e-5, (kind, dtype)
ones = torch.ones(1, 3)
advantage = gae(ones, ones.to(torch.uint8), ones.bool(), 0 * ones, 0 * ones[:, 0], gamma=1.0,
                gae_lambda=1.0)
assert torch.equal(advantage, ones)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
