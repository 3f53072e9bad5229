"""infer-slide: maps of invasive ductal carcinoma."""

import sys

from wsi_pipeline.base.files import out_path
from wsi_pipeline.cli.batch import add_batch_arguments, listed_slides, run_batch, staging_of
from wsi_pipeline.cli.common import command_parser, run_command
from wsi_pipeline.cli.dry_run import dry_run
from wsi_pipeline.pipeline.config import InferConfig, load_config
from wsi_pipeline.pipeline.estimate import estimator_of_inference
from wsi_pipeline.pipeline.slide_jobs import InferJob

EXAMPLE = """  infer-slide biopsy.svs --out maps
  infer-slide *.svs --out maps --device cuda:1 --config infer
  infer-slide archive/ more.csv 'scans/**/*.ndpi' --out maps --workers 4
  infer-slide scan.svs --out maps --mpp 0.2525
  infer-slide biopsy.svs --out maps --model idc_default --model mine.safetensors"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser("Map invasive ductal carcinoma on whole slides.", EXAMPLE)
    add_batch_arguments(parser, "as infer")
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME|FILE",
        help="a shipped model, or a .safetensors with its card (default: idc_default); several, each with its "
        "--model: their mean, each patch alone, and a map of how far they are apart",
    )
    parser.add_argument("--device", default="auto", metavar="D", help="auto (default), cpu, cuda or cuda:1")
    args = parser.parse_args(argv)

    def run() -> int:
        config = load_config(InferConfig, args.config) if args.config else InferConfig()
        models = tuple(args.model or ["idc_default"])
        job = InferJob(out_path(args.out), config, models, args.device, args.overwrite, staging_of(args))
        entries = listed_slides(args)
        if args.dry_run:
            return dry_run(entries, estimator_of_inference(job), args.workers)
        return run_batch(job, entries, args)

    return run_command(run, args.verbose)


if __name__ == "__main__":
    sys.exit(main())
