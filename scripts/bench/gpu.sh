#!/usr/bin/env bash
# Correctness, then figures, on a machine with a GPU, in under nine minutes: every test marked gpu, then measure_gpu.py.
#
#   scripts/bench/gpu.sh [--docs docs/performance.md | --device cpu --quick] [options of measure_gpu.py]
#
# On a bare machine (Python 3.12, torch 2.11 for CUDA, no network) from a folder that pack_wheels.py wrote: site.tar.xz
# beside the code is unpacked and used, or the packages in $SITE as they are. Results go to $OUT, else to runs/gpu:
# gpu.json, gpu.md (the page's section), tests.log, log.txt.
set -u
cd "$(dirname "$0")/../.."
OUT=${OUT:-$PWD/runs/gpu}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
if [ -f ../site.tar.xz ]; then
  site=${SITE:-/tmp/wsi_pipeline_site}
  if [ -z "${SITE:-}" ] && [ ! "$site/unpacked" -nt ../site.tar.xz ]; then
    version=$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || exit
    if [ "$version" != 3.12 ]; then
      echo "$PYTHON: found Python $version, expected 3.12, which site.tar.xz is for; set PYTHON" >&2
      exit 2
    fi
    rm -rf "$site"
    mkdir -p "$site" && tar -xJf ../site.tar.xz -C "$site" && touch "$site/unpacked" || exit
  fi
  export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
  export LD_LIBRARY_PATH="$site/nvidia/cu13/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
else
  export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
fi
slide=../shared/data/slides/breast_40x.svs
PYTHONUNBUFFERED=1 "$PYTHON" -m scripts.bench.measure_gpu --slide "$slide" --out "$OUT" --work "${WORK:-$OUT}" "$@" 2>&1 |
  tee "$OUT/log.txt"
exit "${PIPESTATUS[0]}"
