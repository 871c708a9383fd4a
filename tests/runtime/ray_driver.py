"""A training run by Ray in which workers fail: `ray_driver.py FAULTS CLUSTER OPTION ...`.

FAULTS are those of `failing_worker.py`, one for each start of the workers, separated by commas.
CLUSTER is the number of CPUs, or "machines": two machines of one CPU each, the second of which is
lost after the first checkpoint. Each worker leaves its process number in RUN_DIR.pids, and the
first one the number of workers of each start in RUN_DIR.sizes.
"""

import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import torch
from failing_worker import inject
from ray._common.utils import reset_ray_address
from ray.cluster_utils import Cluster

from mtxl_rl.command import value_of
from mtxl_rl.runtime.ray_train import connect, first_worker
from mtxl_rl.train import main
from mtxl_rl.training import ray_trainer

train_in_worker = ray_trainer._train_in_worker


def leave(folder: Path, name: str, content: object) -> None:
    """Write a file for the test."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(str(content), encoding="utf-8")


def train_with_faults(arguments: Mapping[str, Any], faults: list[str]) -> int:
    """Inject the fault of this start, and train."""
    run_dir = Path(arguments["config"].run_dir)
    sizes = run_dir.with_suffix(".sizes")
    start = int(first_worker(str(len(list(sizes.iterdir())) if sizes.exists() else 0)))
    if os.environ["RANK"] == "0":
        leave(sizes, str(start), os.environ["WORLD_SIZE"])
    leave(run_dir.with_suffix(".pids"), str(os.getpid()), "")
    if start < len(faults):
        inject(faults[start])
    torch.set_default_dtype(torch.float64)
    return train_in_worker(arguments)


def lose_second_machine(cluster: Cluster, run_dir: Path, machine: object) -> None:
    """Kill a machine's Ray once the run has a checkpoint."""
    while not list(run_dir.glob("checkpoints/step_*.pt")):
        time.sleep(0.1)
    cluster.remove_node(machine, allow_graceful=False)


if __name__ == "__main__":
    faults, machines, *options = sys.argv[1:]
    folder = Path(value_of(options, "run_dir") or "")
    if machines == "machines":
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        reset_ray_address()  # The file would make others on this machine wait for this cluster.
        second = cluster.add_node(num_cpus=1)
        connect(address=cluster.address)
        arguments = (cluster, folder, second)
        threading.Thread(target=lose_second_machine, args=arguments, daemon=True).start()
    else:
        connect(num_cpus=int(machines))
    listed = [fault for fault in faults.split(",") if fault]
    ray_trainer._train_in_worker = lambda arguments: train_with_faults(arguments, listed)
    try:
        main([*options, "launcher=ray"])
    finally:
        # The cluster ends at exit, and Ray ends a process that is connected to it with code 1.
        ray.shutdown()
