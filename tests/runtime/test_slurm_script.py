"""`examples/slurm.sbatch` starts torchrun once per node, at a port of the job."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sbatch"


def arguments(folder: Path, *, job: int) -> list[str]:
    """The arguments of srun in a job, with programs that stand in for Slurm's."""
    for name, line in [("scontrol", 'printf "node7\\nnode8\\n"'), ("srun", 'printf "%s\\n" "$@"')]:
        program = folder / name
        program.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        program.chmod(0o755)
    variables = {
        "PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(SCRIPT), "env=MemoryMaze", "num_envs=8192"],
        env=variables, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_each_job_has_its_own_port(tmp_path: Path) -> None:
    command = arguments(tmp_path, job=4_123_456)
    assert command[:2] == ["python", "-m"]
    assert {"--nnodes=2", "--nproc-per-node=8", "--rdzv-id=4123456"} <= set(command)
    assert "--rdzv-endpoint=node7:13456" in command
    assert command[-4:] == ["-m", "mtxl_rl.train", "env=MemoryMaze", "num_envs=8192"]
    assert "--rdzv-endpoint=node7:13457" in arguments(tmp_path, job=4_123_457)
