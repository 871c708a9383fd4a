"""Compiled runs and policies, and what `Compiled` does with many shapes."""

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
    monkeypatch.setattr("mtxl_rl.agents.policy.compiled", lambda call, *_, **__: call)
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
