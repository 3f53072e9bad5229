"""Kill runs of infer-slide and tile-slides at many instants, in every stage, and see that nothing is lost.

    python -m scripts.bench.torture SLIDE --work runs/torture --kills 200 --json runs/torture.json

Runs each command once in peace. Then, as often as wanted: a process of the command is killed (SIGKILL) a random time
after it entered a stage, each stage in turn; started again, and killed again, a few times; at last it runs to its
end. Then its run folder must be that of the run in peace, file by file and byte by byte (but for the times and
the date), with nothing beside it; and at most one block for each kill may have been done twice. Ends with 1 and says
where it is not so. What lies in --work is replaced.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import re
import select
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from wsi_pipeline.results.commit import WRITERS

STAGE = re.compile(rb"stage (\w+)")
BLOCK = re.compile(rb"done block (\d+, \d+)")
# A round's kills, before its process may end.
KILLS_A_ROUND = 4
# No process here takes so long; one that does hangs.
PATIENCE_S = 600.0
CONFIGS = {
    "infer-slide": "grid: {stride_px: 25, block_px: 256}\nclassify: {precision: fp32}\n",
    "tile-slides": "grid: {patch_px: 50, mpp: 4.0, block_px: 256}\n",
}


# Blocks that are being written at a time: a kill may cost all of them.
AT_ONCE = {"infer-slide": WRITERS, "tile-slides": 1}


@dataclass
class Ran:
    """What a process said before it ended: seconds after its start at which each stage began, and blocks done."""

    code: int
    stages: dict[str, float] = field(default_factory=dict)
    blocks: list[bytes] = field(default_factory=list)
    seconds: float = 0.0
    last: bytes = b""


def main() -> int:
    """The exit code: 1 if anything was lost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("slide", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs; emptied")
    parser.add_argument("--kills", type=int, default=20, help="of each command (default: %(default)s)")
    parser.add_argument("--command", choices=CONFIGS, action="append", help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write what was found here")
    args = parser.parse_args()
    import torch  # noqa: F401  once, before the processes are forked: they then start at once

    from wsi_pipeline.pipeline import infer as pipeline  # noqa: F401

    report, bad = {}, []
    for command in args.command or CONFIGS:
        found, wrong = torture(command, args.slide, args.work / command, args.kills, args.seed)
        report[command] = found
        bad += wrong
        print(f"{command}: {json.dumps(found)}", flush=True)
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n")
    for line in bad:
        print(line)
    return 1 if bad else 0


def torture(
    command: str, slide: Path, work: Path, kills: int, seed: int
) -> tuple[dict[str, object], list[str]]:
    """What was found in numbers, and what went wrong in sentences."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    config = work / "config.yaml"
    config.write_text(CONFIGS[command])
    peace = work / "peace"
    whole = run(command, slide, peace, config)
    if whole.code:
        return {}, [f"{command}: the run in peace ended with {whole.code}: {whole.last.decode()}"]
    chance = random.Random(seed)
    stages = list(whole.stages)
    ends = [*list(whole.stages.values())[1:], whole.seconds]
    lengths = dict(
        zip(stages, (b - a for a, b in zip(whole.stages.values(), ends, strict=True)), strict=True)
    )
    killed: Counter[str] = Counter()
    twice, rounds, wrong = 0, 0, []
    while killed.total() < kills:
        out, done, here = work / "killed", Counter[bytes](), 0
        shutil.rmtree(out, ignore_errors=True)
        while True:
            stage = min(stages, key=lambda s: (killed[s], chance.random()))
            wanted = (stage, chance.uniform(0, lengths[stage])) if here < KILLS_A_ROUND else None
            ran = run(command, slide, out, config, wanted)
            done.update(set(ran.blocks))
            if ran.code == -signal.SIGKILL:
                killed[list(ran.stages)[-1]] += 1
                here += 1
                continue
            if ran.code:
                wrong.append(f"{command}: round {rounds} ended with {ran.code}: {ran.last.decode()}")
            break
        repeated = sum(count - 1 for count in done.values())
        twice += repeated
        if repeated > AT_ONCE[command] * here:
            wrong.append(f"{command}: round {rounds}: {repeated} blocks were done twice after {here} kills")
        wrong += [f"{command}: round {rounds}: {line}" for line in differences(peace, out)]
        rounds += 1
    found: dict[str, object] = {
        "kills": killed.total(),
        "kills by stage": dict(killed),
        "rounds": rounds,
        "blocks of the slide": len(whole.blocks),
        "blocks done twice": twice,
        "wrong": len(wrong),
    }
    return found, wrong


def run(command: str, slide: Path, out: Path, config: Path, kill: tuple[str, float] | None = None) -> Ran:
    """Run the command in a process of its own; `kill` is a stage and seconds after its beginning."""
    reading, writing = os.pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_command, args=(command, slide, out, config, writing)
    )
    start = time.monotonic()
    process.start()
    os.close(writing)
    ran, said, deadline = Ran(0), b"", start + PATIENCE_S
    assert process.pid is not None
    while True:
        ready, _, _ = select.select([reading], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(process.pid, signal.SIGKILL)
            deadline = time.monotonic() + PATIENCE_S
            kill = None
            continue
        part = os.read(reading, 1 << 16)
        if not part:
            break
        *lines, said = (said + part).split(b"\n")
        for line in lines:
            ran.last = line or ran.last
            if stage := STAGE.search(line):
                ran.stages[stage[1].decode()] = time.monotonic() - start
                if kill and kill[0] == stage[1].decode():
                    deadline = time.monotonic() + kill[1]
            elif block := BLOCK.search(line):
                ran.blocks.append(block[1])
    os.close(reading)
    process.join()
    ran.code, ran.seconds = process.exitcode or 0, time.monotonic() - start
    return ran


def _command(command: str, slide: Path, out: Path, config: Path, writing: int) -> None:
    """In the new process: the command itself, all that it says going to `writing`."""
    os.dup2(writing, 1)
    os.dup2(writing, 2)
    os.close(writing)
    arguments = [str(slide), "--out", str(out), "--config", str(config), "--verbose"]
    if command == "infer-slide":
        from wsi_pipeline.cli import infer_slide as module

        arguments += ["--device", "cpu"]
    else:
        from wsi_pipeline.cli import tile_slides as module  # type: ignore[no-redef]

        arguments += ["--export"]
    sys.exit(module.main(arguments))


def differences(peace: Path, out: Path) -> list[str]:
    """In what the second folder of results is not the first."""
    folders = [next(p for p in folder.iterdir() if (p / "summary.json").is_file()) for folder in (peace, out)]
    files = [{p.relative_to(f) for p in f.rglob("*") if p.is_file()} for f in folders]
    wrong = [f"{name}: missing" for name in sorted(files[0] - files[1])]
    wrong += [f"{name}: left over" for name in sorted(files[1] - files[0])]
    for name in sorted(files[0] & files[1]):
        first, second = ((folder / name).read_bytes() for folder in folders)
        if name.name == "summary.json":
            first, second = (_timeless(data) for data in (first, second))
        elif name.name in ("report.png", "report.pdf"):  # hold the date
            first, second = first[:8], second[:8]
        if first != second:
            wrong.append(f"{name}: differs")
    with (out / "manifest.csv").open(newline="") as file:
        wrong += [f"manifest: {row}" for row in csv.DictReader(file) if row["status"] == "failed"]
    return wrong


def _timeless(summary: bytes) -> bytes:
    values = json.loads(summary)
    return json.dumps({key: values[key] for key in values if key not in ("seconds", "finished")}).encode()


if __name__ == "__main__":
    sys.exit(main())
