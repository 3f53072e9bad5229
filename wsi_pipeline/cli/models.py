"""models: the registry of models, with names, versions and who approved them."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wsi_pipeline.base.text import counted
from wsi_pipeline.cli.common import ALL_DONE, SOME_FAILED, command_parser, run_command

if TYPE_CHECKING:
    from wsi_pipeline.models.card import ModelCard
    from wsi_pipeline.models.registered import Entry

EXAMPLE = """  models add runs/mine/mine.safetensors mine@1.0 --approved-by "A. Pathologist"
  models list
  models show mine@1.0
  models compare idc_default mine@1.0
  infer-slide biopsy.svs --out maps --model mine@1.0"""
# How many names each action takes.
ACTIONS = {"list": 0, "show": 1, "compare": 2, "add": 2}
MEASURES = ("auroc", "auprc", "f1", "balanced_accuracy", "ece")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit code."""
    parser = command_parser("models", "Keep models under names and versions, and compare them.", EXAMPLE)
    parser.add_argument("action", choices=list(ACTIONS), metavar="ACTION", help="list, show, compare or add")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="MODEL",
        help="of show one, of compare two: NAME@VERSION, a shipped model or a FILE; of add FILE and NAME@VERSION",
    )
    parser.add_argument("--approved-by", metavar="WHO", help="of add: who answers for the model")
    parser.add_argument(
        "--registry",
        type=Path,
        metavar="DIR",
        help="folder of the registry (default: $WSI_MODELS, or ~/.local/share/wsi_pipeline/models); other commands "
        "take it from $WSI_MODELS",
    )
    return run_command(parser, _run, argv)


def _run(args: argparse.Namespace) -> int:
    from wsi_pipeline.base.errors import UsageError
    from wsi_pipeline.models.registered import registry_folder

    if len(args.names) != ACTIONS[args.action]:
        raise UsageError(
            f"models {args.action}: found {counted(len(args.names), 'name')}, expected {ACTIONS[args.action]}; "
            "see models --help"
        )
    if args.approved_by is not None and args.action != "add":
        raise UsageError(f"models {args.action}: takes no --approved-by; add alone does")
    folder = registry_folder(args.registry)
    if args.action == "list":
        return _list(folder)
    if args.action == "add":
        return _add(folder, args)
    found = [_found(folder, text) for text in args.names]
    if args.action == "show":
        _print_rows([(name, value) for name, value in _facts(*found[0]).items()])
        return ALL_DONE
    (first, second) = (_facts(*each) for each in found)
    _print_rows([("", *args.names)] + [(name, first[name], second[name]) for name in first])
    if len({str(_validation_of(card)) for card, _ in found}) > 1:
        print("the measures are of different validation patches: they say little of which model is better")
    print(
        f"on the same patches: evaluate-model --model {args.names[1]} --against {args.names[0]} --data PATCHES"
    )
    return ALL_DONE


def _list(folder: Path) -> int:
    from wsi_pipeline.models.model import SHIPPED, load_model
    from wsi_pipeline.models.registered import entries_of

    entries, broken = entries_of(folder)
    rows = [("model", "approved", "by", "AUROC", "of patients")]
    for path in sorted(SHIPPED.glob("*.safetensors")):
        rows.append((path.stem, "shipped", "", *_auroc(load_model(path.stem).card)))
    for entry in entries:
        try:
            auroc = _auroc(_found(folder, str(entry))[0])
        except Exception as error:  # whatever it is, the others are listed
            auroc = ("not to be loaded", "")
            broken.append(str(error))
        rows.append((str(entry), entry.approved, entry.approved_by, *auroc))
    _print_rows(rows)
    if not entries:
        print(f"the registry {folder} is empty: models add FILE NAME@VERSION --approved-by WHO")
    for line in broken:
        print(f"error: {line}", file=sys.stderr)
    return SOME_FAILED if broken else ALL_DONE


def _add(folder: Path, args: argparse.Namespace) -> int:
    from wsi_pipeline.base.errors import UsageError
    from wsi_pipeline.models.model import load_model
    from wsi_pipeline.models.registered import add_entry, parse_name

    file, name = Path(args.names[0]), args.names[1]
    parse_name(name)
    if args.approved_by is None:
        raise UsageError("models add: expected --approved-by WHO: a registry says who answers for each model")
    if file.suffix != ".safetensors":
        raise UsageError(f"models add: found {file}, expected a .safetensors with its .json card beside it")
    load_model(file)
    print(f"{add_entry(folder, name, file, args.approved_by)} is in {folder}")
    return ALL_DONE


def _found(folder: Path, text: str) -> "tuple[ModelCard, Entry | None]":
    from wsi_pipeline.models.names import check_model_names

    check_model_names([text], folder)
    from wsi_pipeline.models.model import load_model
    from wsi_pipeline.models.registered import find_entry, is_registered_name, registered_weights

    if not is_registered_name(text):
        return load_model(text).card, None
    return load_model(registered_weights(text, folder)).card, find_entry(folder, text)


def _facts(card: "ModelCard", entry: "Entry | None") -> dict[str, str]:
    """What people ask of a model, in words and numbers."""
    training = card.training
    began = [
        str(each.get("registered") or each.get("name") or each.get("file"))
        for each in training.get("pretrained", [])
    ]
    return {
        "card's name": card.name,
        "approved": f"{entry.approved} by {entry.approved_by}" if entry else "not in the registry",
        "network": card.architecture,
        "patches": f"{card.patch_px} px at {card.mpp:g} um/px",
        "trained on": _side(training.get("train")),
        "validation": _side(training.get("val")),
        "data": str(training.get("data") or "not known"),
        "began from": ", ".join(began) or "nothing",
        **{name: _measure(card, name) for name in MEASURES},
        "cross-validated": _cross_validated(card),
        "robustness": _robustness(card),
        "threshold": f"{card.threshold:.3f}",
        "context step": "yes" if card.context else "no",
        "limits": card.limits or "none named",
        "weights": card.weights_sha256[:16],
    }


def _validation_of(card: "ModelCard") -> tuple[object, ...]:
    """On which patches its measures are, as far as the card says: how many, of which data, by which split."""
    training = card.training
    config = training.get("config")
    return (
        training.get("val"),
        training.get("data"),
        config.get("split") if isinstance(config, dict) else None,
    )


def _side(counts: object) -> str:
    if not isinstance(counts, dict):
        return "not known"
    return ", ".join(f"{value} {name}" for name, value in counts.items())


def _auroc(card: "ModelCard") -> tuple[str, str]:
    """The AUROC, and of how many patients it is, without which it says little."""
    counts = card.training.get("val")
    patients = counts.get("patients") if isinstance(counts, dict) else None
    return _measure(card, "auroc"), str(patients) if isinstance(patients, int) else "not known"


def _measure(card: "ModelCard", name: str) -> str:
    values = card.metrics.get("val")
    value = values.get(name) if isinstance(values, dict) else None
    return f"{value:.3f}" if isinstance(value, float) else "not known"


def _cross_validated(card: "ModelCard") -> str:
    """What networks trained likewise reached on patients that they never saw."""
    from wsi_pipeline.base.text import counted

    try:
        found = card.metrics["cross_validation"]
        auroc = found["patches"]["auroc"]
        low, high = auroc["interval_95"]
        return (
            f"AUROC {auroc['value']:.3f} ({low:.3f} to {high:.3f}) on {counted(found['patients'], 'patient')}, "
            f"{len(found['folds_of_5'])} folds of 5"
        )
    except (TypeError, KeyError, ValueError):
        return "not known"


def _robustness(card: "ModelCard") -> str:
    """The change of the patches that costs most."""
    try:
        rows = card.metrics["robustness"]["rows"]
        worst = min(rows, key=lambda row: float(row["auroc_change"]))
        return (
            f"of {len(rows) - 1} changes, {worst['name']} costs most: AUROC {worst['auroc_change']:+.3f}, "
            f"{worst['flipped']:.1%} flipped"
        )
    except (TypeError, KeyError, ValueError):
        return "not known"


def _print_rows(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns side by side; a text of several words keeps its whole length only in the last one."""
    from wsi_pipeline.base.text import on_one_line

    texts = [[on_one_line(cell) for cell in row] for row in rows]
    last = len(texts[0]) - 1
    widths = [min(max(len(row[i]) for row in texts), 48) for i in range(last)]
    for row in texts:
        cells = [
            (text if len(text) <= width else text[: width - 3] + "...").ljust(width)
            for text, width in zip(row, widths, strict=False)
        ]
        print("  ".join([*cells, row[last]]).rstrip())


if __name__ == "__main__":
    sys.exit(main())
