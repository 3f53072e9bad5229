"""classify-images: probabilities of single patches and pictures."""

import argparse
import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsi_pipeline.base.errors import ScaleError, UsageError
from wsi_pipeline.base.text import counted, for_spreadsheet
from wsi_pipeline.base.version import VERSION
from wsi_pipeline.cli.common import (
    ALL_DONE,
    NOTHING_RUN,
    SOME_FAILED,
    add_trust_argument,
    command_parser,
    run_command,
)

if TYPE_CHECKING:  # --help and a wrong argument should not wait for it
    from wsi_pipeline.inference.images import ImageScore

EXAMPLE = """  classify-images patches/*.png
  classify-images field.tif --mpp 0.5 --json field.json
  classify-images benign/ malignant/ --resize --model runs/mine/mine.safetensors --csv scores.csv"""
COLUMNS = (
    "file",
    "probability",
    "highest",
    "share_above",
    "patches",
    "width_px",
    "height_px",
    "how",
    "stain_from",
    "scale_from",
    "warning",
    "failed",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser(
        "classify-images",
        "Probability of IDC of single patches, and of pictures brought to the model's scale.",
        EXAMPLE,
        device=True,
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="pictures, or folders of them")
    parser.add_argument(
        "--model",
        default="idc_default",
        metavar="NAME|FILE",
        help="a shipped model, or a .safetensors with its card",
    )
    add_trust_argument(parser)
    scale = parser.add_mutually_exclusive_group()
    scale.add_argument(
        "--mpp",
        type=float,
        metavar="M",
        help="um per pixel of the pictures: they are brought to the model's scale and covered with patches",
    )
    scale.add_argument(
        "--resize", action="store_true", help="squeeze each picture, as a whole, into one patch"
    )
    parser.add_argument(
        "--one-slide",
        action="store_true",
        help="all pictures are of one slide, whose stain is measured over them together; exported patches have it in "
        "their export.json",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all there is to know here")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table here")
    return run_command(parser, _run, argv)


def _run(args: argparse.Namespace) -> int:
    from wsi_pipeline.base.files import check_writable, write_bytes
    from wsi_pipeline.models.names import check_model_names

    check_model_names([args.model])
    paths = find_images(args.files)
    for option, path in (("--json", args.json), ("--csv", args.csv)):
        if path:
            check_writable(path.parent, option)  # before minutes of work
    from wsi_pipeline.inference.classifier import Classifier
    from wsi_pipeline.inference.device import choose_device  # torch: seconds, once it is needed
    from wsi_pipeline.inference.images import FailedImage, check_stain_of_all, image_info, score_images
    from wsi_pipeline.models.model import load_model
    from wsi_pipeline.pipeline.config import InferConfig

    model = load_model(args.model, args.trust)
    classifier = Classifier([model], choose_device(args.device), InferConfig().classify)
    scores: list[ImageScore] = []
    failures: list[FailedImage] = []
    width = max(len(str(path)) for path in paths)
    print(f"{'file':{width}}  probability  highest  at or above {model.card.threshold:.3f}")
    for result in score_images(paths, classifier, args.mpp, args.resize, args.one_slide):
        if isinstance(result, FailedImage):
            failures.append(result)
            print(f"failed: {result.error}", file=sys.stderr)
        else:
            scores.append(result)
            print(f"{result.path!s:{width}}  {_line(result)}", flush=True)
    for what, values in (
        ("stain", [s.stain_from for s in scores]),
        ("scale", [s.cut.scale_from for s in scores]),
    ):
        if values:
            print(f"{what}: {_counted(values)}")
    stain_check = check_stain_of_all(scores, model.card.stain)
    warning = stain_check.warning if stain_check else ""
    if warning:
        print(f"warning: over {counted(len(scores), 'picture')}, {warning}", file=sys.stderr)
    info = {
        "model": {"name": model.card.name, "sha256": model.sha256, "threshold": model.card.threshold},
        "patch_px": model.card.patch_px,
        "mpp": model.card.mpp,
        "version": VERSION,
        "stain": asdict(stain_check) if stain_check else None,
        "warnings": [warning] if warning else [],
        "images": [image_info(score) for score in scores],
        "failed": [{"file": str(failure.path), "reason": str(failure.error)} for failure in failures],
    }
    if args.json:
        write_bytes(args.json, (json.dumps(info, indent=1, ensure_ascii=False) + "\n").encode())
    if args.csv:
        write_bytes(args.csv, _table(info).encode())
    if failures:
        print(f"{len(failures)} of {counted(len(paths), 'picture')} failed", file=sys.stderr)
    if not scores and all(isinstance(failure.error, ScaleError) for failure in failures):
        return NOTHING_RUN
    return SOME_FAILED if failures else ALL_DONE


def find_images(files: Sequence[Path]) -> list[Path]:
    """The files, and those of image formats in folders among them, however deep, in order."""
    from wsi_pipeline.base.images import SUFFIXES

    paths: list[Path] = []
    for file in files:
        if not file.is_dir():
            paths.append(file)
            continue
        inside = sorted(path for path in file.rglob("*") if path.suffix.lower() in SUFFIXES)
        if not inside:
            raise UsageError(f"{file}: found no image in this folder (known: {', '.join(sorted(SUFFIXES))})")
        paths += inside
    if not any(path.exists() for path in paths):
        raise UsageError(f"{paths[0]}: no such file or folder; check the path")
    return paths


def _counted(values: Sequence[str]) -> str:
    """Each value once, with how many there are of it where they are several."""
    counts = Counter(values)
    return "; ".join(value if len(counts) == 1 else f"{value} ({count:,})" for value, count in counts.items())


def _line(score: "ImageScore") -> str:
    patches = len(score.probabilities)
    above = "yes" if score.share_above else "no"
    if patches > 1:
        above = f"{score.share_above:.0%} of {counted(patches, 'patch')}"
    flag = "  stain unlike the training data" if score.stain_check and score.stain_check.is_far else ""
    return f"{score.mean:11.4f}  {score.highest:7.4f}  {above}{flag}"


def _table(info: dict[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", restval="", lineterminator="\n")
    writer.writeheader()
    rows = [*info["images"], *({"file": row["file"], "failed": row["reason"]} for row in info["failed"])]
    writer.writerows({name: for_spreadsheet(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


if __name__ == "__main__":
    sys.exit(main())
