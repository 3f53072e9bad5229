"""export-map: files for other tools from maps that are there, without a new run."""

import argparse
import sys
from collections.abc import Sequence

from wsi_pipeline.base.text import counted
from wsi_pipeline.cli.common import ALL_DONE, SOME_FAILED, command_parser, run_command

EXAMPLE = """  export-map maps/sample --exports ometiff,dicom
  export-map maps --exports asap
  export-map maps/sample --exports pdf --slide /new/place/sample.svs"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser("export-map", "Write files for other tools from maps that are there.", EXAMPLE)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, OUT/<slide name>, or OUT for all"
    )
    parser.add_argument(
        "--exports",
        required=True,
        metavar="LIST",
        help="of ometiff (QuPath, OMERO, large_image), dicom (Segmentation and Parametric Map), asap (ASAP's outlines) "
        "and pdf (the report, and a page to grade on)",
    )
    parser.add_argument(
        "--slide", metavar="FILE", help="where the slide lies now, if not where it was mapped; for one RUN"
    )
    return run_command(parser, _run, argv)


def _run(args: argparse.Namespace) -> int:
    # Imported here: --help and a wrong argument should not wait for it.
    from wsi_pipeline.base.errors import OutputError, ResultError, SlideError, UsageError
    from wsi_pipeline.base.files import out_path
    from wsi_pipeline.base.text import on_one_line
    from wsi_pipeline.pipeline.batch_report import write_batch_report
    from wsi_pipeline.pipeline.export import export_map, run_folders
    from wsi_pipeline.results.exports.formats import check_exports, exports_of

    exports = exports_of(args.exports)
    check_exports(exports)
    runs = [folder for run in args.runs for folder in run_folders(run)]
    if args.slide and len(runs) > 1:
        raise UsageError(f"--slide {args.slide}: found {counted(len(runs), 'run')}, expected one")
    failed = 0
    for run in runs:
        try:
            for path in export_map(run, exports, args.slide):
                print(path)
        except (ResultError, SlideError, OutputError) as error:
            if len(runs) == 1:
                raise
            failed += 1
            print(f"error: {on_one_line(str(error))}", file=sys.stderr)
    if "pdf" in exports:
        for place in args.runs:
            for path in write_batch_report(out_path(place)):
                print(path)
    return SOME_FAILED if failed else ALL_DONE


if __name__ == "__main__":
    sys.exit(main())
