"""What the networks of the line-up cost: a Markdown table of every config in a folder (default configs/train).

.venv/bin/python -m scripts.results.lineup configs/train
"""

import sys
from pathlib import Path

from wsi_pipeline.learning.training.train import load_train_options
from wsi_pipeline.models.cost import network_cost
from wsi_pipeline.models.model import build_network


def main() -> None:
    """Print the table."""
    folder = Path(sys.argv[1] if sys.argv[1:] else "configs/train")
    print("| config | parameters | MFLOP a patch |\n| --- | ---: | ---: |")
    for path in sorted(folder.glob("*.yaml")):
        options = load_train_options(path)
        network = build_network(options.architecture, **options.architecture_options)
        cost = network_cost(network, options.patch_px)
        print(f"| {path.stem} | {cost.parameters:,} | {cost.mflop:,.0f} |")


if __name__ == "__main__":
    main()
