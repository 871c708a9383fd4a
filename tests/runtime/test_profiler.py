"""The profile of an iteration, and the operations that it counts."""

from contextlib import closing

import pytest
import torch

from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.runtime.profiler import count_operations, measure_peak
from mtxl_rl.training.run import Run

WIDTH, NUM_ENVS = 64, 8
OPTIONS = [
    "env=TMaze", f"torso.width={WIDTH}", "torso.num_layers=2", "torso.num_heads=2",
    f"num_envs={NUM_ENVS}", "torso.window_length=16", "torso.segment_length=16",
    "ppo.rollout_length=64", "ppo.bptt_segments=4", "ppo.num_minibatches=2", "device=cpu",
    "total_steps=1024", "policy.previous_action=false", "policy.previous_reward=false",
]  # fmt: skip


@pytest.mark.training
def test_a_profile_names_every_part_of_an_iteration() -> None:
    config = compose_config([*OPTIONS, "ppo.rollout_length=16", "ppo.bptt_segments=1"])
    with closing(make_vector_env(config.env, num_envs=NUM_ENVS, seed=0)) as env:
        run = Run(config, env)
        run.start(seed=None)
        with run.profiler.profile(num_steps=config.steps_per_iteration):
            run.iterate()
    lines = {line.split()[0]: line.split() for line in run.profiler.report.splitlines()}
    assert int(lines["act"][1]) == 16
    assert int(lines["backward"][1]) == 2 * config.ppo.num_epochs
    assert {"environment", "encoder", "torso", "heads", "optimizer", "iteration"} <= lines.keys()


def test_operations_are_those_of_the_matrix_products() -> None:
    config = compose_config([*OPTIONS, "torso=mlp"])
    with closing(make_vector_env(config.env, num_envs=NUM_ENVS, seed=0)) as env:
        run = Run(config, env)
        run.start(seed=None)
        run.collector.collect()
        acting, learning = count_operations(run.collector, run.agent)
        features = env.single_observation_space.shape[0]
    maps = sum(
        module.in_features * module.out_features
        for module in run.policy.modules()
        if isinstance(module, torch.nn.Linear)
    )
    assert acting == pytest.approx(2 * maps)
    # Backward: two products of the forward's size, except for the input of the first map.
    first = features * WIDTH
    assert learning == pytest.approx(2 * (3 * maps - first))


def test_a_matrix_product_has_a_rate() -> None:
    assert measure_peak(torch.device("cpu")) > 0
