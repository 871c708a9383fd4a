#!/usr/bin/env bash
# Training and torso (train.py, torso.py) on one machine, in less than eight minutes on a GPU.
#
#   tests/bench/gpu.sh                 on the CUDA device, or on the CPU where there is none
#   tests/bench/gpu.sh --quick         few and small cases: does it run at all?
#   tests/bench/gpu.sh --wheels DIR    download what a machine without a network lacks
#
# Writes $RESULTS/<device>.md (tests/bench/results by default). PYTHON= picks the Python, which needs
# torch, numpy, numba, einops and the packages of --wheels (x86-64 Linux, Python 3.12). Carry that
# folder along and there, first:
#   python3 -m pip install --no-index --no-deps wheels/*.whl
# A part that fails or outlasts its time is named in the file, the rest continues, and the exit code is 1.
set -uo pipefail
cd "$(dirname "$0")/../.."

PYTHON="${PYTHON:-python3}"
RESULTS="${RESULTS:-tests/bench/results}"
WHEELS="absl-py beartype cloudpickle farama-notifications gymnasium hydra-core jaxtyping labmaze
    markdown-it-py mdurl omegaconf<2.4 packaging pygments PyYAML rich safetensors wadler-lindig"
quick=""
case "${1:-}" in
    "") ;;
    --quick) quick="--quick" ;;
    --wheels)
        to="${2:?tests/bench/gpu.sh --wheels DIR}"
        # shellcheck disable=SC2086
        "$PYTHON" -m pip download --quiet --no-deps --only-binary :all: --python-version 3.12 \
            --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 --dest "$to" $WHEELS &&
            "$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$to" antlr4-python3-runtime==4.9.3
        exit
        ;;
    *) echo "usage: tests/bench/gpu.sh [--quick | --wheels DIR]" >&2; exit 2 ;;
esac

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=1
read -r device name < <("$PYTHON" - <<'END'
import platform
import re

import torch

is_gpu = torch.cuda.is_available()
cpu = platform.processor() or platform.machine()
name = torch.cuda.get_device_name() if is_gpu else f"cpu {cpu}"
print("cuda" if is_gpu else "cpu", re.sub(r"\W+", "_", name).lower())
END
) || exit 1
mkdir -p "$RESULTS"
file="$RESULTS/$name.md"
failed=0

part() { # part SECONDS TITLE COMMAND...: its output, under its title, whatever it does
    local limit="$1" title="$2" begun="$SECONDS" code=0
    shift 2
    { printf '\n## %s\n\n`%s`\n' "$title" "$*"; } >>"$file"
    timeout "$limit" "$PYTHON" "$@" >>"$file" 2>"$file.errors" || code=$?
    if ((code)); then
        failed=1
        printf '\nfailed with exit code %s (124: longer than %s s)\n\n```\n' "$code" "$limit" >>"$file"
        tail -n 20 "$file.errors" >>"$file"
        printf '```\n' >>"$file"
    fi
    rm -f "$file.errors"
    echo "$title: $((SECONDS - begun)) s, exit code $code"
}

"$PYTHON" - "$device" >"$file" <<'END'
import os
import platform
import sys

import torch

from mtxl_rl.runtime.profiler import measure_peak

device = torch.device(sys.argv[1])
name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
print(f"# {name}\n\nPython {platform.python_version()}, torch {torch.__version__}, "
      f"{len(os.sched_getaffinity(0))} cores\n\n| | matrix product, TFLOP/s |\n|---|---|")
for dtype in (torch.float32, torch.bfloat16)[: 1 + (device.type == "cuda")]:
    print(f"| {dtype} | {measure_peak(device, dtype) / 1e12:.3g} |")
END

train=(tests/bench/train.py --device "$device" --profile)
torso=(tests/bench/torso.py --device "$device" $quick)
if [[ -n "$quick" ]]; then
    small=(--width 32 --layers 1 --window 16 --segment 16 --steps 16 --envs 4 --iterations 1)
    part 200 "T-maze" "${train[@]}" --tasks TMaze --systems mtxl,gru "${small[@]}"
    part 200 "Torsos" "${torso[@]}" --rounds 1 --seconds 0.01
elif [[ "$device" == cuda ]]; then
    base=(--width 256 --precision bfloat16 --iterations 3)
    maze=(--tasks MemoryMaze --systems mtxl "${base[@]}" --steps 256 --epochs 2 --minibatches 8)
    # Its environments start spread, with 1,000 random steps in each, before anything is timed.
    full=(tests/bench/train.py --device cuda "${maze[@]}" --envs 1024 --compile)
    part 150 "Memory Maze, base model, compiled" "${full[@]}"
    part 60 "Memory Maze, base model, profiled" "${train[@]}" "${maze[@]}" --envs 512
    part 40 "T-maze, base model" "${train[@]}" --tasks TMaze --systems mtxl,gtrxl,gru "${base[@]}" \
        --envs 512
    part 80 "T-maze, large model, compiled" "${train[@]}" --tasks TMaze --systems mtxl "${base[@]}" \
        --envs 512 --width 512 --layers 6 --compile
    part 70 "Torsos" "${torso[@]}" --precision bfloat16 --rounds 3 --seconds 0.1
else
    part 900 "Training" "${train[@]}"
    part 900 "Torsos" "${torso[@]}"
fi
echo "$file"
exit "$failed"
