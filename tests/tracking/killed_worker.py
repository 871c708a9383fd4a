"""A process that ends within its `run_record` without completing it: `killed_worker.py RUN_DIR`."""

import os
import sys
from pathlib import Path

from mtxl_rl.tracking.run_record import run_record

if __name__ == "__main__":
    with run_record(Path(sys.argv[1])):
        os._exit(9)
