"""infer-slide: maps of invasive ductal carcinoma."""

import sys
from pathlib import Path

from wsi_pipeline.cli.common import add_slide_arguments, command_parser, local_copies, run_command, run_slides
from wsi_pipeline.config import InferConfig, load_config
from wsi_pipeline.files import out_path
from wsi_pipeline.pipeline import Progress, grid_for_model, infer_slide
from wsi_pipeline.run_folder import SlideResult

EXAMPLE = """  infer-slide biopsy.svs --out maps
  infer-slide *.svs --out maps --device cuda:1 --config configs/infer.yaml
  infer-slide scan.svs --out maps --mpp 0.2525
  infer-slide biopsy.svs --out maps --model idc_default --model mine.safetensors"""


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser("Map invasive ductal carcinoma on whole slides.", EXAMPLE)
    add_slide_arguments(parser, "as configs/infer.yaml")
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
        out = out_path(args.out)
        config = load_config(InferConfig, args.config) if args.config else InferConfig()
        from wsi_pipeline.classify import choose_device, classifier_of  # torch: seconds, once it is needed
        from wsi_pipeline.model import load_models

        models = load_models(args.model or ["idc_default"])
        grid_for_model(config.grid, models[0].card.patch_px, models[0].card.mpp)
        classifier = classifier_of(models, choose_device(args.device), config.classify)

        with local_copies(args, out) as copy_of:

            def work(path: Path, progress: Progress) -> SlideResult:
                with copy_of(path) as copy:
                    return infer_slide(
                        path, out, config, classifier, args.mpp, args.overwrite, progress, copy
                    )

            return run_slides(args.slides, out, work)

    return run_command(run, args.verbose)


if __name__ == "__main__":
    sys.exit(main())
