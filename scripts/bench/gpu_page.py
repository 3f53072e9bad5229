"""What scripts/bench/measure_gpu.py found, as a section of docs/performance.md."""

from typing import Any

Found = dict[str, Any]
# Patches of 50 px a second end to end at 40x; of 224 px, the share of the network alone; how busy the GPU is.
WANTED_PER_S, WANTED_SHARE, WANTED_BUSY = 300_000, 0.9, 0.8


def page(found: Found) -> str:
    """The section's text; what was not measured is named."""
    machine = found["machine"]
    on = f"{machine.get('gpu', 'no GPU')}, {machine['cores']} cores ({machine['processor']})"
    lines = [
        "### Figures",
        "",
        f"{on}; Python {machine['python']}, torch {machine['torch']}, {machine['date']}, commit "
        f"{machine['commit']}. JPEG tiles are decoded {'in C' if machine['jpeg tiles in C'] else 'by simplejpeg'}. "
        "Written by `scripts/bench/gpu.sh`.",
        "",
    ]
    if machine.get("quick") or "gpu" not in machine:
        lines += ["**A proof that it runs, not a measurement:** little of everything, or no GPU.", ""]
    if (tests := found.get("tests", {})).get("tests"):
        lines += [
            f"Tests marked `gpu`: {tests['tests']}, of which {tests['failures'] + tests['errors']} failed and "
            f"{tests['skipped']} were skipped.",
            "",
        ]
    lines += [*_classified_table(found), *_network_table(found), *_lineup_table(found), *_rows_of(found)]
    left = [name for name, section in found.items() if "failed" in section or "left out" in section]
    if left:
        lines += [f"Not measured in this run: {', '.join(left)}.", ""]
    if not machine.get("quick") and "gpu" in machine:
        lines += _targets(found)
    return "\n".join(lines)


def _classified(found: Found) -> dict[str, Found]:
    """Every row of the classify stage, by what was classified."""
    rows = {}
    for name, row in found.get("end to end", {}).items():
        rows[f"{name}, 50 px at 40x"] = row
    for name, row in found.get("resampled", {}).items():
        rows[f"whole slide resampled, {name}"] = row
    rows["224 px at 40x, ResNet-50"] = found.get("resnet")
    return {name: row for name, row in rows.items() if isinstance(row, dict) and "patches_per_s" in row}


def _classified_table(found: Found) -> list[str]:
    lines = [
        "The classify stage of infer-slide: read, cut, classify, write.",
        "",
        "| | patches | patches/s | network alone | share | GPU busy | GPU memory, MB | host memory, MB | engine |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in _classified(found).items():
        engine = row["engine"]
        lines.append(
            f"| {name} | {row['patches']:,} | {row['patches_per_s']:,} | {row['network_per_s'] or 0:,} | "
            f"{row.get('share of the network alone', 0):.2f} | {_busy(row)} | {row.get('gpu_mb', 0):,} | "
            f"{row['host_mb']:,} | {engine['precision']}, {engine['batch']} a batch |"
        )
    return [*lines, ""]


def _busy(row: Found) -> str:
    samples = row["busy samples"]
    return f"{sum(samples) / len(samples):.0%}" if samples else ""


def _network_table(found: Found) -> list[str]:
    rows = {name: row for name, row in found.get("network", {}).items() if isinstance(row, dict)}
    if not rows:
        return []
    lines = ["The network alone, thousand patches a second by patches a batch:", ""]
    for name, row in rows.items():
        lines.append(f"- {name}: " + ", ".join(f"{batch}: {_thousands(rate)}" for batch, rate in row.items()))
    return [*lines, ""]


def _lineup_table(found: Found) -> list[str]:
    rows = {name: row for name, row in found.get("lineup", {}).items() if isinstance(row, dict)}
    if not rows:
        return []
    lines = [
        "Networks of the line-up, patches a second:",
        "",
        "| network | patches/s | engine |",
        "| --- | ---: | --- |",
    ]
    lines += [
        f"| {name} | {row['per_s']:,} | {row['precision']}, {row['batch']} a batch |"
        for name, row in rows.items()
    ]
    return [*lines, ""]


def _thousands(rate: int | str) -> str:
    return rate if isinstance(rate, str) else f"{rate / 1000:,.1f}"


def _rows_of(found: Found) -> list[str]:
    lines = []
    decode = {name: row for name, row in found.get("decode", {}).items() if isinstance(row, dict)}
    for name, row in decode.items():
        rates = ", ".join(f"{threads}: {rate:,}" for threads, rate in row.items())
        lines.append(f"- Blocks decoded without a network, by {name}, patches a second by threads: {rates}.")
    for name, row in found.get("decoders", {}).items():
        if isinstance(row, dict):
            lines.append(
                f"- {name}: {row['tiles_per_s']:,.0f} tiles of 256 px a second from memory, pixels off by "
                f"{row['pixels']:.0f}, scores by {row['moved']:.2g}, {row['unnoticed']:.0%} of damaged tiles given as "
                "whole."
            )
    copies = {name: value for name, value in found.get("copies", {}).items() if "GB/s" in name}
    if copies:
        lines.append(
            "- Copies to the GPU: " + ", ".join(f"{name} {value}" for name, value in copies.items()) + "."
        )
    for name, row in found.get("workers", {}).items():
        if isinstance(row, dict):
            lines.append(
                f"- infer-slide from the shell, {name}: {row['slides']} slides, {row['patches']:,} patches in "
                f"{row['seconds']} s, start-up included ({row['patches_per_s']:,} patches/s); stages of the first, s: "
                + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["stages"].items())
                + "."
            )
    if rates := found.get("training", {}).get("patches_per_s"):
        lines.append(
            f"- train-model, {found['training']['patches']:,} patches of 50 px, patches a second by epoch: "
            f"{', '.join(f'{rate:,}' for rate in rates)}; the command took {found['training']['command_s']} s."
        )
    for row in found.get("training", {}).get("alone", []):
        lines.append(
            f"- Training {row['config']} at {row['patch_px']} px in batches of {row['batch_size']}, patches a second: "
            f"loader alone {row['loader']:,.0f}, step alone {row['step']:,.0f}, both {row['both']:,.0f}"
            + (
                f"; the host waited for the GPU {row['waits']} times in ten steps."
                if row["waits"] is not None
                else "."
            )
        )
    return [*lines, ""] if lines else []


def _targets(found: Found) -> list[str]:
    lines = ["| target | found | |", "| --- | --- | --- |"]
    rows = _classified(found)
    whole = rows.get("whole slide, 50 px at 40x")
    if whole:
        samples = whole["busy samples"]
        busy = sum(samples) / len(samples) if samples else 0.0
        rate = whole["patches_per_s"]
        lines += [
            f"| {WANTED_PER_S:,} patches/s end to end at 40x | {rate:,} | {_met(rate >= WANTED_PER_S)} |",
            f"| GPU busy at least {WANTED_BUSY:.0%} | {busy:.0%} | {_met(busy >= WANTED_BUSY)} |",
        ]
    if large := rows.get("224 px at 40x, ResNet-50"):
        share = large.get("share of the network alone", 0.0)
        lines.append(
            f"| 224 px ResNet-50 at {WANTED_SHARE} of the network alone | {share:.2f} | {_met(share >= WANTED_SHARE)} |"
        )
    return lines


def _met(is_met: bool) -> str:
    return "met" if is_met else "not met"
