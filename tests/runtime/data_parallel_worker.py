"""A process of a data-parallel run: `data_parallel_worker.py FOLDER ITERATIONS RESUME DTYPE ...`.

Trains in DTYPE, as float64, with the options that follow, and saves a checkpoint, weights and
metrics, on rank 0. RESUME is a folder whose checkpoint it continues, or "new".
"""

import json
import sys
from contextlib import closing
from pathlib import Path

import torch

from mtxl_rl.compose import compose_config
from mtxl_rl.envs.registry import make_vector_env
from mtxl_rl.runtime.distributed import joined_world
from mtxl_rl.tracking import checkpoint
from mtxl_rl.training.run import Run


def main(folder: Path, num_iterations: int, resume: str, dtype: str, options: list[str]) -> None:
    """Run the iterations."""
    torch.set_default_dtype(getattr(torch, dtype))
    config = compose_config(options)
    with joined_world(torch.device("cpu")) as world:
        num_envs = config.num_envs // world.size
        first_env = world.rows(num_envs).start
        env = make_vector_env(config.env, num_envs=num_envs, seed=7, first_env=first_env)
        with closing(env):
            run = Run(config, env, world=world)
            if resume != "new":
                run.restore(checkpoint.load(Path(resume)))
            else:
                run.start(seed=None)
            metrics = [run.iterate() for _ in range(num_iterations)]
            run.save(folder)
            if world.rank == 0:
                torch.save(run.policy.state_dict(), folder / "weights.pt")
                (folder / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
