"""explore-patches: one page on a set of labelled images, before anything is trained on it."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_pipeline.base.text import counted
from wsi_pipeline.cli.common import ALL_DONE, command_parser, run_command

if TYPE_CHECKING:  # --help and a wrong argument should not wait for it
    from wsi_pipeline.learning.datasets.split import SplitOptions

EXAMPLE = """  explore-patches patches --out patches.html
  explore-patches breakhis --config configs/train/mine.yaml --out breakhis.html"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser(
        "explore-patches",
        "Counts, samples, stains, duplicates and damage of a set of labelled images, as one HTML page.",
        EXAMPLE,
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="any set that train-model reads")
    parser.add_argument(
        "--out", type=Path, default=Path("patches.html"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="NAME|FILE",
        help="a training config (shipped: train/resnet18; or a YAML file), whose split is looked at",
    )
    return run_command(parser, _run, argv)


def _run(args: argparse.Namespace) -> int:
    from wsi_pipeline.base.files import check_writable
    from wsi_pipeline.learning.datasets.explore import explore
    from wsi_pipeline.learning.datasets.load import list_labelled
    from wsi_pipeline.learning.datasets.split import SplitOptions

    split, patches = load_patch_options(args.config) if args.config else (None, None)
    listing = list_labelled(args.data, split or SplitOptions())
    check_writable(args.out.parent)  # before minutes of work
    exploration = explore(listing, split, patches)
    from wsi_pipeline.learning.datasets.explore_page import exploration_page  # matplotlib: a second
    from wsi_pipeline.results.figures.html import write_page

    write_page(args.out, exploration_page(exploration))
    for finding in exploration.findings:
        print(f"{finding.what}: {finding.count:,}. {finding.advice}")
    print(f"scale of the images: {listing.scale.words if listing.scale else 'not known'}")
    print(f"{counted(len(exploration.listing), 'image')}: {args.out}")
    return ALL_DONE


def load_patch_options(name_or_path: str | Path) -> "tuple[SplitOptions, tuple[int, float] | None]":
    """The options under `split` of a training config, and its patch_px and mpp, where both are plain numbers."""
    from wsi_pipeline.base.configs import find_config
    from wsi_pipeline.base.options import options_from_dict, read_yaml_file
    from wsi_pipeline.learning.datasets.split import SplitOptions
    from wsi_pipeline.learning.training.options import TrainOptions

    path = find_config(name_or_path)
    values = read_yaml_file(path)
    split = options_from_dict(SplitOptions, values.get("split", {}), str(path))
    patch_px, mpp = (values.get(key, getattr(TrainOptions, key)) for key in ("patch_px", "mpp"))
    plain = isinstance(patch_px, int) and isinstance(mpp, int | float) and min(patch_px, mpp) > 0
    return split, (patch_px, float(mpp)) if plain else None


if __name__ == "__main__":
    sys.exit(main())
