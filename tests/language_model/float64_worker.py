"""A process of `mtxl_rl.train_lm` that learns in float64: `float64_worker.py OPTION ...`."""

import sys

import torch

from mtxl_rl.train_lm import main

if __name__ == "__main__":
    torch.set_default_dtype(torch.float64)
    main(sys.argv[1:])
