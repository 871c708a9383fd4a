"""A launcher of two processes: `launching_worker.py PROGRAM ARGUMENT ...`."""

import sys

from mtxl_rl.runtime.distributed import launch

if __name__ == "__main__":
    launch(sys.argv[1:], num_processes=2)
