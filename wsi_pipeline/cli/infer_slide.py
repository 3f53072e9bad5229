"""infer-slide: maps of invasive ductal carcinoma."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wsi_pipeline.cli.batch_arguments import add_batch_arguments
from wsi_pipeline.cli.common import ALL_DONE, SOME_FAILED, add_trust_argument, command_parser, run_command

EXAMPLE = """  infer-slide biopsy.svs --out maps
  infer-slide *.svs --out maps --device cuda:1 --config infer
  infer-slide archive/ more.csv 'scans/**/*.ndpi' --out maps --workers 4
  infer-slide scan.svs --out maps --mpp 0.2525 --exports ometiff,pdf
  infer-slide biopsy.svs --out fine --cell-um 100
  infer-slide biopsy.svs --out parts --inside outlines
  infer-slide biopsy.svs --out maps --model idc_default --model mine.safetensors"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser(
        "infer-slide", "Map invasive ductal carcinoma on whole slides.", EXAMPLE, device=True
    )
    add_batch_arguments(parser, "as infer")
    parser.add_argument(
        "--model",
        action="append",
        metavar="NAME|FILE",
        help="a shipped model, a .safetensors with its card, NAME@VERSION of the registry (models list), "
        "or the folder of a package of WSInfer's zoo, TorchScript, ONNX or, with --trust, .pt2 (FOLDER#CLASS "
        "names its class to map) (default: idc_default); several, each with its "
        "--model: their mean, each patch alone, and a map of how far they are apart",
    )
    add_trust_argument(parser)
    parser.add_argument(
        "--cell-um",
        type=float,
        metavar="UM",
        help="side of a map's cell in um, a whole part of a patch's (200 um by default: 100, 40); patches overlap for "
        "it, and are 4 or 25 times as many",
    )
    parser.add_argument(
        "--exports",
        metavar="LIST",
        help="files for other tools: of ometiff, dicom, asap and pdf, or none (default: what the config says, pdf)",
    )
    parser.add_argument(
        "--inside",
        type=Path,
        metavar="DIR",
        help="map only within people's outlines, <slide name>.geojson or .xml: its regions of interest, or where it "
        "has none all that is outlined",
    )
    parser.add_argument(
        "--field-mm",
        type=float,
        metavar="MM",
        help="diameter of your microscope's high-power field, for fields to grade in and counts of mitoses (default: "
        "0.55, or the config's)",
    )
    return run_command(parser, _run, argv)


def _run(args: argparse.Namespace) -> int:
    # Imported here: --help and a wrong argument should not wait for it.
    from wsi_pipeline.models.names import check_model_names

    models = tuple(args.model or ["idc_default"])
    if not args.scheduler:  # else they are looked for where the workers are
        check_model_names(models)
    from wsi_pipeline.base.errors import UsageError
    from wsi_pipeline.base.files import out_path
    from wsi_pipeline.base.options import options_from_dict, options_to_dict
    from wsi_pipeline.cli.batch import listed_slides, run_batch, staging_of
    from wsi_pipeline.cli.dry_run import dry_run
    from wsi_pipeline.pipeline.batch_report import write_batch_report
    from wsi_pipeline.pipeline.config import InferConfig, load_config
    from wsi_pipeline.pipeline.estimate import estimator_of_inference
    from wsi_pipeline.pipeline.slide_jobs import InferJob
    from wsi_pipeline.results.exports.formats import exports_of
    from wsi_pipeline.results.fields import FieldOptions

    config = load_config(InferConfig, args.config) if args.config else InferConfig()
    if args.exports is not None:
        config = replace(config, exports=exports_of(args.exports))
    if args.cell_um is not None:
        if not 0 < args.cell_um < 1e6:
            raise UsageError(f"--cell-um {args.cell_um:g}: expected a positive number of um")
        config = replace(config, grid=replace(config.grid, cell_um=args.cell_um))
    if args.field_mm is not None:
        fields = options_to_dict(config.fields) | {"diameter_mm": args.field_mm}
        config = replace(config, fields=options_from_dict(FieldOptions, fields, "--field-mm"))
    if args.inside and not args.inside.is_dir():
        raise UsageError(f"--inside {args.inside}: no such folder")
    out, staging = out_path(args.out), staging_of(args)
    job = InferJob(out, config, models, args.device, args.overwrite, staging, args.inside, args.trust)
    entries = listed_slides(args)
    if args.dry_run:
        return dry_run(entries, estimator_of_inference(job), args.workers)
    code = run_batch(job, entries, args)
    if "pdf" in config.exports and code in (ALL_DONE, SOME_FAILED):
        for path in write_batch_report(job.out):
            print(path)
    return code


if __name__ == "__main__":
    sys.exit(main())
