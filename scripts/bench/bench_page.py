"""What the benchmark found, as a section of docs/performance.md, each target with whether it is met."""

from collections.abc import Callable
from typing import Any

LEAST_SHARE = 0.9
SAME_MAP = 1e-5
# Times as fast as the loop, with at most this share of patches across the threshold; none: the same map.
AGAINST_LOOP: tuple[tuple[float, float | None], ...] = ((1.4, None), (3.0, 0.005), (4.5, 0.01))
FLAT_MEMORY, MOST_MEMORY_MB = 0.2, 2000.0
SHELL_S = 10.0

Found = dict[str, Any]


def page(found: Found) -> str:
    """The section's text."""
    lines = ["## Benchmark", "", _conditions(found), ""]
    for case in found["cases"]:
        lines += [*_case_table(case, found["device"].startswith("cuda")), ""]
    lines += [*_memory_table(found["memory"]), ""]
    lines += [
        f"From the shell, start-up included: {found['shell']['slide']} at 4 um/px, "
        f"{found['shell']['patches']:,} patches, {found['shell']['seconds']:.1f} s.",
        "",
    ]
    if found["decoders"]:
        lines += [*_decoder_table(found["decoders"]), ""]
    lines += _gpu_lines(found)
    lines += ["| target | found | |", "| --- | --- | --- |"]
    lines += [
        f"| {target} | {figure} | {'met' if met else 'not met'} |" for target, figure, met in targets(found)
    ]
    return "\n".join(lines)


def targets(found: Found) -> list[tuple[str, str, bool]]:
    """Each target, what was found, and whether that meets it."""
    rows = []
    for case in found["cases"]:
        shares = {name: s["share"] for name, s in case["settings"].items()}
        target = f"{case['name']}: end to end at least {LEAST_SHARE:g} of the slower of decode and network"
        figure = "; ".join(f"{name} {share:.2f}" for name, share in shares.items())
        rows.append((target, figure, min(shares.values()) >= LEAST_SHARE))
    case = found["cases"][0]
    for times, across in AGAINST_LOOP:
        fits = _same_map if across is None else _few_across(across)
        speeds = {n: s["end_to_end"] / case["loop"] for n, s in case["settings"].items() if fits(s)}
        allowed = (
            f"within {SAME_MAP:g} of its map"
            if across is None
            else f"at most {across:.1%} across the threshold"
        )
        target = f"{case['name']}: {times:g} times the loop, {allowed}"
        best = max(speeds, key=lambda n: speeds[n], default=None)
        rows.append(
            (target, f"{speeds[best]:.2f} ({best})" if best else "none", bool(best and speeds[best] >= times))
        )
    for scale, peaks in found["memory"].items():
        small, large = peaks["10,000"], peaks["100,000"]
        growth = large["peak_mb"] / small["peak_mb"] - 1
        rows.append(
            (
                f"peak memory from 10,000² to 100,000² px within {FLAT_MEMORY:.0%}, {scale}",
                f"{growth:+.0%}",
                growth <= FLAT_MEMORY,
            )
        )
        beyond = large["beyond_mb"]
        rows.append((f"below 2 GB beyond the model, {scale}", f"{beyond:,.0f} MB", beyond < MOST_MEMORY_MB))
    seconds = found["shell"]["seconds"]
    rows.append(
        (
            f"a whole 40x slide at 4 um/px in {SHELL_S:g} s from the shell",
            f"{seconds:.1f} s",
            seconds <= SHELL_S,
        )
    )
    return rows


def _same_map(setting: Found) -> bool:
    return bool(setting["largest_difference"] <= SAME_MAP)


def _few_across(share: float) -> Callable[[Found], bool]:
    return lambda setting: bool(setting["across"] <= share)


def _conditions(found: Found) -> str:
    machine = found["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {found['device']}; torch {machine['torch']}, commit "
        f"{machine['commit']}. Medians of {found['repeats']} repeats, interleaved; a share is that of each repeat by "
        f"itself, and then the median. End to end is the classify stage of infer-slide (read, cut, classify, write), "
        f"on a slide that was opened and looked at, as it is there. The loop: a DataLoader of one read_region a patch, "
        f"float32, batches of 256, two workers. *No network* takes one pixel for a score: what all else can carry. At "
        f"40x the first patches are taken, whole blocks of them. All rows take the shipped weights as if trained at "
        f"the scale named, without context step, without bringing stains together and without hearing of the slide, "
        f"and read the level of that scale where there is one, as the loop does. Generated slides are few distinct "
        f"tiles repeated, so they come from the disk's cache. Written by "
        f"`make bench`, which leaves the figures in runs/bench/bench.json too."
    )


def both(case: Found, setting: Found) -> float:
    """Patches a second that cores can decode and compute, which do one or the other."""
    return float(1 / (1 / case["decode"] + 1 / setting["network"]))


def _case_table(case: Found, on_gpu: bool) -> list[str]:
    lines = [
        f"{case['name']}: {case['patches']:,} patches, patches a second."
        + (
            ""
            if on_gpu
            else " Decode and network share the cores: together they can at best do as many as *both*."
        ),
        "",
        "| | end to end | network alone | decode alone | both | times the loop | most moved | across the threshold |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| loop ({case['loop_patches']:,} patches) | {case['loop']:,.0f} | | | | 1 | | |",
        f"| no network | {case['without_network']:,.0f} | | {case['decode']:,.0f} | | | | |",
    ]
    for name, s in case["settings"].items():
        lines.append(
            f"| {name} | {s['end_to_end']:,.0f} | {s['network']:,.0f} | {case['decode']:,.0f} | "
            f"{'' if on_gpu else f'{both(case, s):,.0f}'} | "
            f"{s['end_to_end'] / case['loop']:.2f} | {s['largest_difference']:.2g} | {s['across']:.2%} |"
        )
    return lines


def _memory_table(memory: Found) -> list[str]:
    lines = [
        "Peak resident memory of one process, MB, and in brackets what it is beyond torch and the model.",
        "",
        "| | 10,000² px | 100,000² px |",
        "| --- | --- | --- |",
    ]
    for scale, peaks in memory.items():
        cells = " | ".join(f"{p['peak_mb']:,.0f} ({p['beyond_mb']:,.0f})" for p in peaks.values())
        lines.append(f"| {scale} | {cells} |")
    return lines


def _decoder_table(decoders: dict[str, Found]) -> list[str]:
    patches = next(iter(decoders.values()))["patches"]
    lines = [
        "JPEG tiles of 256 px decoded from memory: tiles of the real slide a second, at 40x; and on patches of its "
        f"level at 4 um/px ({patches:,}) how far each is from libjpeg-turbo, in pixels (of 255) and in scores; "
        "and of tiles whose second half is missing, the share that each gives as if they were whole.",
        "",
        "| | tiles | pixels off by | scores off by | across the threshold | damage unnoticed |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, d in decoders.items():
        lines.append(
            f"| {name} | {d['tiles_per_s']:,.0f} | {d['pixels']:.0f} | {d['moved']:.2g} | {d['across']:.2%} | "
            f"{d['unnoticed']:.0%} |"
        )
    return lines


def _gpu_lines(found: Found) -> list[str]:
    if not found["device"].startswith("cuda"):
        return [
            "No GPU was at hand: nothing in this benchmark says how fast one is. On a machine that has one, "
            "`make bench BENCH='--device cuda --cores 0'` measures the same, how busy the GPU is, and JPEG tiles "
            "decoded on it by torchvision and, where it is installed, nvImageCodec.",
            "",
        ]
    busy = "; ".join(
        f"{case['name']}, {name}: {s['gpu_busy']:.0%}"
        for case in found["cases"]
        for name, s in case["settings"].items()
        if s["gpu_busy"] is not None
    )
    return [f"GPU busy while end to end ran: {busy}.", ""]
