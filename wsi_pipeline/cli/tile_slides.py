"""tile-slides: which patches of each slide hold tissue."""

import sys
from pathlib import Path

from wsi_pipeline.cli.common import add_slide_arguments, command_parser, local_copies, run_command, run_slides
from wsi_pipeline.config import TileConfig, load_config
from wsi_pipeline.errors import UsageError
from wsi_pipeline.files import out_path
from wsi_pipeline.jobs import run_each
from wsi_pipeline.pipeline import Progress, tile_slide
from wsi_pipeline.run_folder import SlideResult
from wsi_pipeline.slide import open_slide
from wsi_pipeline.survey import survey_slide

EXAMPLE = """  tile-slides biopsy.svs --out tiles
  tile-slides *.svs --out tiles --config configs/tile_idc.yaml --annotations outlines --export
  tile-slides biopsy.svs --out tiles --dry-run"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser("Cut whole slides into patches that hold tissue.", EXAMPLE)
    add_slide_arguments(parser, "50x50 px at 40x, as configs/tile_40x.yaml")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="DIR",
        help="GeoJSON outlines, <slide name>.geojson: label the patches",
    )
    parser.add_argument(
        "--export", action="store_true", help="write each patch as PNG too, in the IDC set's folders"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print patches, blocks and gigabytes; write nothing"
    )
    args = parser.parse_args(argv)

    def run() -> int:
        out = out_path(args.out)
        config = load_config(TileConfig, args.config) if args.config else TileConfig()
        if args.annotations and not args.annotations.is_dir():
            raise UsageError(f"--annotations {args.annotations}: no such folder")
        if args.dry_run:
            return dry_run(args.slides, config, args.mpp)

        with local_copies(args, out) as copy_of:

            def work(path: Path, progress: Progress) -> SlideResult:
                annotations, export = args.annotations, args.export
                with copy_of(path) as copy:
                    return tile_slide(
                        path, out, config, args.mpp, annotations, export, args.overwrite, progress, copy
                    )

            return run_slides(args.slides, out, work)

    return run_command(run, args.verbose)


def dry_run(slides: list[Path], config: TileConfig, mpp: float | None) -> int:
    """Print what tiling each slide would come to, without writing; the exit code."""
    total, failed = 0, 0

    def one(path: Path) -> tuple[int, int, float]:
        slide = open_slide(path, mpp)
        plan = survey_slide(slide, config, config.grid).plan
        patches = int(plan.scored.sum())
        return patches, sum(1 for _ in plan.blocks()), patches * plan.grid.patch_px**2 * 3 / 1e9

    for outcome in run_each(one, slides):
        if outcome.result is None:
            failed += 1
            print(f"{outcome.item}: {outcome.reason}")
            continue
        patches, blocks, gigabytes = outcome.result
        total += patches
        print(f"{outcome.item}: {patches:,} patches in {blocks:,} blocks, {gigabytes:.2f} GB of pixels")
    print(f"{total:,} patches in {len(slides) - failed} slides")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
