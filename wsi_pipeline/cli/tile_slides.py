"""tile-slides: which patches of each slide hold tissue."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_pipeline.base.errors import UsageError
from wsi_pipeline.cli.batch_arguments import add_batch_arguments
from wsi_pipeline.cli.common import command_parser, run_command

if TYPE_CHECKING:
    from wsi_pipeline.slides.catalog import SlideEntry

EXAMPLE = """  tile-slides biopsy.svs --out tiles
  tile-slides *.svs --out tiles --config tile_idc --annotations outlines --export
  tile-slides slides.csv --out tiles --config tile_idc --annotations outlines --export-format shards
  tile-slides biopsy.svs --out tiles --dry-run"""

# As tiling/export_draw.py has them, which is not imported for --help.
FORMATS = ("png", "idc", "shards")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser("tile-slides", "Cut whole slides into patches that hold tissue.", EXAMPLE)
    add_batch_arguments(parser, "50x50 px at 40x, as tile_40x; also shipped: tile_idc")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="DIR",
        help="outlines, <slide name>.geojson or .xml (ASAP, ImageScope), or masks, <slide name>_mask.png or .tif: "
        "label the patches",
    )
    parser.add_argument(
        "--export",
        action="store_true",
        help="write patches too, as export in the config says: each as PNG, by default",
    )
    parser.add_argument(
        "--export-format",
        choices=FORMATS,
        help="write patches too: png, in folders of their labels; idc, in the folders and names of the public IDC set; "
        "shards, WebDataset tar files for millions",
    )
    return run_command(parser, _run, argv)


def _run(args: argparse.Namespace) -> int:
    # Imported here: --help and a wrong argument should not wait for it.
    from wsi_pipeline.base.files import out_path
    from wsi_pipeline.cli.batch import listed_slides, run_batch, staging_of
    from wsi_pipeline.cli.dry_run import dry_run
    from wsi_pipeline.pipeline.config import TileConfig, load_config
    from wsi_pipeline.pipeline.estimate import estimator_of_tiling
    from wsi_pipeline.pipeline.manifest import done_before
    from wsi_pipeline.pipeline.slide_jobs import TileJob

    config = load_config(TileConfig, args.config) if args.config else TileConfig()
    if args.annotations and not args.annotations.is_dir():
        raise UsageError(f"--annotations {args.annotations}: no such folder")
    if args.export_format:
        config = replace(config, export=replace(config.export, format=args.export_format))
    entries = listed_slides(args)
    out, staging = out_path(args.out), staging_of(args)
    export = args.export or args.export_format is not None
    job = TileJob(out, config, args.annotations, export, args.overwrite, staging)
    if export and config.export.format == "idc":
        _warn_of_equal_names(done_before(out), entries)
    if args.dry_run:
        return dry_run(entries, estimator_of_tiling(job), args.workers)
    return run_batch(job, entries, args)


def _warn_of_equal_names(before: Mapping[str, str], entries: "Sequence[SlideEntry]") -> None:
    """Of patients whose slides were cut by another command: in the IDC set's layout those have numbers of one command.

    before: patients of the slides that are done, by the slides' names.
    """
    patients, names = {entry.patient for entry in entries}, {entry.name for entry in entries}
    others = [name for name, patient in before.items() if patient in patients - {""} and name not in names]
    if others:
        listed = ", ".join(others[:5]) + " ..." * (len(others) > 5)
        print(
            f"warning: of patients in this command other slides were cut before ({listed}): slides are numbered within "
            "a command (idx5, idx6), so that patches of both may have one name; name all slides of a patient together",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
