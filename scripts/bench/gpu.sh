#!/usr/bin/env bash
# Correctness, then figures, on a machine with a GPU, in under nine minutes: every test marked gpu, then measure_gpu.py.
#
#   scripts/bench/gpu.sh [--device cpu --quick] [options of measure_gpu.py]
#
# On a bare machine (Python 3.12, torch 2.11 for CUDA, no network) from a folder that pack_wheels.py wrote: site.tar.xz
# beside the code is unpacked and used. Results go to $OUT, else to runs/gpu: gpu.json, tests.log, log.txt.
set -u
cd "$(dirname "$0")/../.."
OUT=${OUT:-$PWD/runs/gpu}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
if [ -f ../site.tar.xz ]; then
  site=${SITE:-/tmp/wsi_pipeline_site}
  [ -d "$site" ] || { mkdir -p "$site" && tar -xJf ../site.tar.xz -C "$site"; } || exit
  export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
  export LD_LIBRARY_PATH="$site/nvidia/cu13/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
else
  export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
fi
slide=../shared/data/slides/breast_40x.svs
PYTHONUNBUFFERED=1 "$PYTHON" -m scripts.bench.measure_gpu --slide "$slide" --out "$OUT" --work "${WORK:-$OUT}" "$@" 2>&1 |
  tee "$OUT/log.txt"
exit "${PIPESTATUS[0]}"
