"""Peak memory of infer-slide's classify stage, in a process of its own.

python -m scripts.bench.bench_memory SLIDE --mpp 4 --work runs/bench      # what the benchmark starts
"""

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Peak:
    """Of one process: resident memory, MB."""

    # Once torch and the model were there, before a slide was opened.
    model_mb: float
    # The most it ever was.
    peak_mb: float

    @property
    def beyond_mb(self) -> float:
        """What the slide added."""
        return self.peak_mb - self.model_mb


def measure_peak(
    slide: Path, mpp: float, patches: int | None, device: str, work: Path, network: bool = True
) -> Peak:
    """The peak of a process that looks at the slide and classifies the first so many patches; None: all.

    Without a network, one pixel of each patch is its score: millions of patches are then a matter of seconds.
    """
    command = [
        sys.executable,
        "-m",
        "scripts.bench.bench_memory",
        str(slide),
        "--mpp",
        str(mpp),
        "--device",
        device,
        "--work",
        str(work),
    ]
    if not network:
        command.append("--no-network")
    if patches:
        command += ["--patches", str(patches)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout.split()
    return Peak(*map(float, printed))


def resident_mb(field: str) -> float:
    """Of this process: 'VmRSS' now, 'VmHWM' the most it ever was. (getrusage would count the parent's, at the fork.)"""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def main() -> int:
    """Run the stage once; prints the memory that the model alone takes, and the peak."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--mpp", type=float, required=True, help="scale of the patches, um/px")
    parser.add_argument("--patches", type=int)
    parser.add_argument("--no-network", action="store_true", help="one pixel of a patch for its score")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()

    from scripts.bench.bench_cases import (
        end_to_end,
        looked_at,
        make_case,
        model_at,
        new_store,
        settings_of,
        without_network,
    )
    from wsi_pipeline.inference.device import choose_device

    model = model_at(args.mpp, args.work)
    print(resident_mb("VmRSS"))
    case = make_case("memory", args.slide, model, args.patches)
    if args.no_network:
        setting = without_network(case)
    else:
        (setting,) = settings_of(["auto"], case, choose_device(args.device))
        assert not isinstance(setting, str), setting
    end_to_end(case, looked_at(case), setting, new_store(case, args.work))
    print(resident_mb("VmHWM"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
