"""monitor: what became of a deployed model, as one page."""

import argparse
import sys
from collections.abc import Sequence

from wsi_pipeline.cli.common import ALL_DONE, command_parser, run_command

EXAMPLE = """  monitor maps
  monitor maps --since 2026-01-01
  monitor s3://bucket/maps

writes OUT/monitor.html, one page: figures by day and model, beside the model's card; slides to look at first, and why;
how far reviewers agree with the map; and the commands that lead from the reviews to a new model. The same figures are
in OUT/monitor_slides.csv, monitor_days.csv and monitor.json."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser(
        "monitor", "What became of a deployed model: one page on a folder of maps and their reviews.", EXAMPLE
    )
    parser.add_argument(
        "out", metavar="OUT", help="what infer-slide was given as --out; or s3://bucket/prefix"
    )
    parser.add_argument(
        "--since", metavar="DATE", help="maps, failures and corrections from that day (UTC) on alone"
    )
    return run_command(parser, _run, argv)


def _run(args: argparse.Namespace) -> int:
    from datetime import UTC, datetime

    from wsi_pipeline.base.files import out_path
    from wsi_pipeline.base.text import counted, on_one_line
    from wsi_pipeline.monitoring.figures import monitor
    from wsi_pipeline.monitoring.runs import parse_since
    from wsi_pipeline.monitoring.written import write_monitor

    since = parse_since(args.since, datetime.now(UTC).date()) if args.since is not None else None
    found = monitor(out_path(args.out), since)
    written = write_monitor(found)
    for own in found.models:
        print(on_one_line(f"{own.model.words}: {counted(len(own.slides), 'slide')}"))
        for each in own.comparisons:
            if each.state == "beyond":
                print(
                    on_one_line(
                        f"  beyond its limit: {each.measure} {each.found:.3f} ({each.limit}): {each.words}"
                    )
                )
    print(
        f"{counted(len(found.first), 'slide')} to look at first, {counted(len(found.runs.failed), 'failure')}"
    )
    for first in found.first[:5]:
        print(on_one_line(f"  {first.slide.name}: {first.reasons[0]}"))
    for problem in found.runs.problems:
        print(f"warning: {on_one_line(problem)}", file=sys.stderr)
    print("to a new model:")
    for line in (*found.retraining.notes, *found.retraining.lines):
        print(f"  {on_one_line(line)}")
    for path in written:
        print(path)
    return ALL_DONE


if __name__ == "__main__":
    sys.exit(main())
