"""Whether two checkouts make the same of the same slides and patches, file by file and byte by byte, dates apart.

    python -m scripts.results.compare_checkouts BEFORE AFTER --work DIR
    python -m scripts.results.compare_checkouts BEFORE AFTER --work DIR --cases 'infer_*' again
    python -m scripts.results.compare_checkouts BEFORE AFTER --work DIR --only-run before

Every command of every case runs in a process of its own on the checkout's code, in a folder of its own, with paths
that are the same on both sides. What BEFORE leaves is kept under DIR by its commit, and used again. AFTER is always
run. A table says how many files of each kind are equal; every difference is named. Exit code 1 if there is one.
"""

import argparse
import csv
import fnmatch
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from PIL import Image

from scripts.results.compare_trees import PASSED_OVER, Compared, compare_trees

HERE = Path(__file__).resolve().parent
WHOLE_MOUNTS = ("9023", "9078", "8863")
LABELLED_PATIENTS = 8
PATCHES_A_LABEL = 16
DONE = "done.json"

# Without padding, so that maps finer than a patch are made over whole blocks. Small enough for seconds.
TRAINING = {
    "name": "tiny",
    "architecture_options": {
        "widths": [8, 16],
        "blocks": [1, 1],
        "strides": [1, 5],
        "padding": "none",
        "squeeze": 0,
    },
    "patch_px": 50,
    "mpp": 4.0,
    "stain_normalisation": 0.7,
    "epochs": 3,
    "batch_size": 32,
    "learning_rate": 0.01,
    "average_decay": 0.9,
    "seed": 7,
}
CONFIGS: dict[str, dict[str, object]] = {
    "tile_idc": {"grid": {"patch_px": 50, "mpp": 4.0, "min_tissue": 0.1}},
    "half_overlap": {
        "grid": {"stride_px": 25},
        "classify": {"engine": "torch", "precision": "fp32"},
        "context": False,
        "delineate": {"threshold": 0.4, "min_area_mm2": 0.05},
    },
    "int8": {"classify": {"precision": "int8"}},
    "bf16": {"classify": {"engine": "torch", "precision": "bf16", "batch_size": 32}},
    "fine": {
        "grid": {"stride_px": 10},
        "classify": {"dense": "require", "engine": "torch", "precision": "fp32"},
    },
    "context": {"split": {"val_patients": ["8863"]}, "views": 2, "draws": 2, "steps": 40, "folds": 2},
}


@dataclass(frozen=True)
class Case:
    """Commands that run one after another in one folder; `printed` where what they print is compared."""

    name: str
    commands: tuple[tuple[str, ...], ...]
    printed: bool = True

    @property
    def described(self) -> str:
        """Its commands, and the configs that they read."""
        files = {word for command in self.commands for word in command if word.endswith(".yaml")}
        return json.dumps([self.commands, self.printed, [Path(file).read_text() for file in sorted(files)]])


def main() -> int:
    """Make the inputs, run both checkouts, compare; gives the exit code."""
    args = _arguments()
    before, after = args.before.resolve(), args.after.resolve()
    work: Path = args.work.resolve()
    shared = (args.shared or before.parent / "shared").resolve()
    inputs = make_inputs(before, shared, work / "inputs")
    cases = [
        case
        for case in all_cases(inputs, shared, args.slides)
        if not args.cases or any(fnmatch.fnmatch(case.name, pattern) for pattern in args.cases)
    ]
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    sides = {"before": work / "before" / commit_of(before), "after": work / "after"}
    if args.only_run != "after":
        run_cases("before", before, cases, sides["before"], keep=not sides["before"].name.endswith("-dirty"))
    if args.only_run != "before":
        run_cases("after", after, cases, sides["after"], keep=False)
    if args.only_run:
        return 0
    print(f"comparing {commit_of(before)[:24]} with {commit_of(after)[:24]}", flush=True)
    found = {
        case.name: list(compare_trees(sides["before"] / case.name, sides["after"] / case.name))
        for case in cases
    }
    return report(found, args.words_may_differ)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path, metavar="BEFORE", help="checkout before the change")
    parser.add_argument("after", type=Path, metavar="AFTER", help="checkout after it")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="inputs and results go here")
    parser.add_argument(
        "--shared", type=Path, metavar="DIR", help="the shared folder (default: beside BEFORE)"
    )
    parser.add_argument(
        "--slides",
        nargs="+",
        metavar="SLIDE",
        default=["sample", "breast_40x", *WHOLE_MOUNTS[:2]],
        help="tiled and mapped by default options: names of made or shared slides, or files (default: %(default)s)",
    )
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="only these, patterns allowed; see --list")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument(
        "--only-run", choices=["before", "after"], metavar="LABEL", help="run one side, compare nothing"
    )
    parser.add_argument(
        "--words-may-differ",
        action="store_true",
        help="printed text and reasons of failures are compared, but a difference in them alone is no failure",
    )
    return parser.parse_args()


def make_inputs(before: Path, shared: Path, inputs: Path) -> Path:
    """The folder of what both sides read: slides, slides with labels, patches, configs; made once."""
    slides, labelled, patches = inputs / "slides", inputs / "labelled", inputs / "patches"
    slides.mkdir(parents=True, exist_ok=True)
    if not (slides / "sample.svs").exists():
        print("making the sample slide (half a minute)", flush=True)
        done = run_command(before, ("make_sample_slide.py", str(slides / "sample.svs")), slides)
        if done.returncode:
            raise SystemExit(done.stderr)
    if not all((labelled / f"{patient}.tiff").exists() for patient in WHOLE_MOUNTS):
        print("making slides with labels", flush=True)
        make = [sys.executable, str(shared / "data" / "make_idc.py"), "slides", str(labelled)]
        subprocess.run([*make, "--patients", *WHOLE_MOUNTS], check=True, stdout=subprocess.DEVNULL)
    if not patches.exists():
        print("making patches", flush=True)
        partial = patches.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        write_patches(shared / "data", partial)
        partial.rename(patches)
    configs = inputs / "configs"
    configs.mkdir(exist_ok=True)
    for name, values in (CONFIGS | training_configs(patches)).items():
        (configs / f"{name}.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return inputs


def write_patches(data: Path, folder: Path) -> None:
    """A few labelled patches of a few patients, as <patient>/<0|1>/*.png."""
    with (data / "idc" / "manifest.csv").open(newline="") as file:
        labels = Counter((row["patient"], row["label"]) for row in csv.DictReader(file))
    patients = [p for p, label in labels if label == "0" and min(labels[p, "0"], labels[p, "1"]) >= 40]
    spec = importlib.util.spec_from_file_location("make_idc", data / "make_idc.py")
    assert spec is not None
    assert spec.loader is not None
    make_idc = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_idc)
    written: Counter[tuple[str, str]] = Counter()
    for row, rgb in make_idc.patches(set(patients[:LABELLED_PATIENTS])):
        patient, label = row["patient"], row["label"]
        if written[patient, label] == PATCHES_A_LABEL or rgb.shape[:2] != (50, 50):
            continue
        written[patient, label] += 1
        place = folder / patient / label
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rgb).save(place / f"{patient}_idx5_x{row['x']}_y{row['y']}_class{label}.png")


def training_configs(patches: Path) -> dict[str, dict[str, object]]:
    """Of train-model and tune-model: the last two patients are the validation side."""
    split = {"split": {"val_patients": sorted(path.name for path in patches.iterdir())[-2:]}}
    marked = {
        "learning_rate": {"tune": {"low": 0.001, "high": 0.02, "log": True}},
        "batch_size": {"tune": {"choices": [16, 32]}},
    }
    return {"train": TRAINING | split, "tune": TRAINING | split | marked}


def all_cases(inputs: Path, shared: Path, slides: Sequence[str]) -> list[Case]:
    """Everything that is run, in order: some read the model that the case `train` leaves."""
    given = shared / "data" / "slides"
    cases = []
    for name in slides:
        path = find_slide(name, inputs, given)
        cases += [
            Case(f"tile_{path.stem}", (("tile-slides", str(path), "--out", "tiles"),)),
            Case(f"infer_{path.stem}", (("infer-slide", str(path), "--out", "maps"),)),
        ]
    return cases + slide_cases(inputs, shared, given) + model_cases(inputs, given)


def find_slide(name: str, inputs: Path, given: Path) -> Path:
    """The file of a slide given by its name or path."""
    if Path(name).is_file():
        return Path(name).resolve()
    folders = (inputs / "slides", inputs / "labelled", given)
    found = [
        path
        for folder in folders
        for suffix in (".svs", ".tiff")
        if (path := folder / f"{name}{suffix}").is_file()
    ]
    if not found:
        raise SystemExit(f"--slides {name}: neither a file nor a slide of {', '.join(map(str, folders))}")
    return found[0]


def slide_cases(inputs: Path, shared: Path, given: Path) -> list[Case]:
    """Other options, formats, workers, runs that go on or are refused, and slides that fail."""
    labelled, small = inputs / "labelled", str(given / "cmu_1_small_region.svs")
    first, second = str(labelled / "9023.tiff"), str(labelled / "9078.tiff")
    odd, bad = str(given / "jp2k_no_mpp.svs"), str(shared / "data" / "bad")
    ihc, absent = str(given / "ihc_sparse_jp2k.svs"), str(inputs / "nowhere.svs")

    def config(name: str) -> tuple[str, str]:
        return "--config", str(inputs / "configs" / f"{name}.yaml")

    export = ("tile-slides", str(given / "breast_40x.svs"), "--out", "tiles", *config("tile_idc"), "--export")
    tile = ("tile-slides", "--out", "tiles", *config("tile_idc"), first, second)
    infer = ("infer-slide", first, "--out", "maps")
    return [
        Case("export_labelled", ((*export, "--annotations", str(given)),)),
        Case("tile_idc", ((*tile, "--export"),)),
        Case("formats", (("infer-slide", str(given / "cmu_1_small_region_dicom"), small, ihc, "--out", "maps"),)),
        Case("told_scale", (("infer-slide", odd, "--mpp", "0.5", "--out", "maps"),)),
        Case("half_overlap", (("infer-slide", small, first, "--out", "maps", *config("half_overlap")),)),
        Case("int8", ((*infer, *config("int8")),)),
        Case("bf16", ((*infer, *config("bf16")),)),
        Case("workers", (("infer-slide", first, second, small, "--out", "maps", "--workers", "2"),), printed=False),
        Case("staged", ((*infer, "--stage-to", "copies"),)),
        Case("shard", ((*tile, small, "--shard", "2/2"),)),
        Case(
            "again",  # skipped, refused, replaced
            (infer, infer, (*infer, *config("half_overlap")), (*infer, *config("half_overlap"), "--overwrite")),
        ),
        Case("bad", (("tile-slides", bad, odd, ihc, "--out", "tiles"), ("infer-slide", bad, "--out", "maps"))),
        Case("refused", (("tile-slides", absent, "--out", "tiles"), ("infer-slide", odd, "--out", "maps"))),
        Case("sample_slide", (("make_sample_slide.py", "small.svs", "--width-mm", "1", "--height-mm", "1"),), False),
    ]  # fmt: skip


def model_cases(inputs: Path, given: Path) -> list[Case]:
    """Training, and what is done with models beside mapping."""
    patches, labelled = str(inputs / "patches"), inputs / "labelled"
    small, first = str(given / "cmu_1_small_region.svs"), str(labelled / "9023.tiff")
    trained, frozen = "../train/model/tiny.safetensors", str(given.parent / "frozen" / "frozen_section.jpg")

    def config(name: str) -> tuple[str, str]:
        return "--config", str(inputs / "configs" / f"{name}.yaml")

    train = ("train-model", *config("train"), "--data", patches, "--device", "cpu", "--out", "model")
    tune = ("tune-model", *config("tune"), "--data", patches, "--device", "cpu", "--out", "tuned")
    slides = ("--slides", str(labelled))
    both = ("--model", "idc_default", "--model", trained)
    some = [str(path) for path in sorted((inputs / "patches").rglob("*.png"))[::20]]
    return [
        Case("train", (train, (*train, "--epochs", "4"))),  # another training in its folder is refused
        Case("tune", ((*tune, "--trials", "2", "--epochs", "1"),), printed=False),
        Case(
            "train_context",
            (("train-context", "--model", "idc_default", "--slides", str(labelled), *config("context"),
              "--out", "context"),
             ("infer-slide", small, "--out", "maps", "--model", "context/idc_default.safetensors")),
        ),
        Case("ensemble", (("infer-slide", small, first, "--out", "maps", *both),)),
        Case("ensemble_overlap", (("infer-slide", first, "--out", "maps", *both, *config("half_overlap")),)),
        Case("dense", (("infer-slide", small, first, "--out", "maps", "--model", trained, *config("fine")),)),
        Case(
            "classify",
            (("classify-images", *some, "--json", "scores.json", "--csv", "scores.csv"),
             ("classify-images", frozen, "--mpp", "0.687", "--json", "field.json"),
             ("classify-images", str(given.parent / "nuclei" / "tnbc"), "--resize", "--csv", "resized.csv")),
        ),
        Case("evaluate", (("evaluate-model", "--data", patches, "--split", "all", *slides, "--out", "evaluation"),)),
        Case("explore", (("explore-patches", patches, *config("train"), "--out", "patches.html"),)),
    ]  # fmt: skip


def commit_of(checkout: Path) -> str:
    """The checkout's commit, with -dirty where its files differ from it."""
    git = ["git", "-C", str(checkout), "describe", "--always", "--abbrev=40", "--exclude", "*", "--dirty"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}  # only looks: others may work there
    done = subprocess.run(git, capture_output=True, text=True, env=environment)
    return done.stdout.strip() if done.returncode == 0 else "unknown-dirty"


def run_cases(side: str, checkout: Path, cases: Sequence[Case], folder: Path, keep: bool) -> None:
    """Run each case on the checkout; with `keep`, those that ran before with the same commands are left alone."""
    print(f"{side}: {checkout} ({commit_of(checkout)[:24]}), into {folder}", flush=True)
    for number, case in enumerate(cases, 1):
        place = folder / case.name
        marker = folder / f"{case.name}.{DONE}"
        described = case.described
        if keep and marker.exists() and json.loads(marker.read_text())["case"] == described:
            continue
        shutil.rmtree(place, ignore_errors=True)
        marker.unlink(missing_ok=True)
        place.mkdir(parents=True)
        began = time.monotonic()
        codes = [run_step(checkout, case, index, place) for index in range(len(case.commands))]
        seconds = time.monotonic() - began
        marker.write_text(json.dumps({"case": described, "seconds": round(seconds, 1)}))
        print(f"{side} [{number}/{len(cases)}] {case.name}: exit {codes}, {seconds:.1f} s", flush=True)


def run_step(checkout: Path, case: Case, index: int, place: Path) -> int:
    """Run one command of a case; beside its files lie its exit code and what it printed."""
    done = run_command(checkout, case.commands[index], place)
    if case.printed:
        text = f"{done.stdout}--- stderr\n{done.stderr}"
        text = text.replace(str(place), "<case>").replace(str(checkout), "<checkout>")
        (place / f"{index}.printed").write_text(text)
    elif done.returncode:
        print(done.stderr, file=sys.stderr)
    (place / f"{index}.code").write_text(f"{done.returncode}\n")
    return done.returncode


def run_command(checkout: Path, command: Sequence[str], place: Path) -> subprocess.CompletedProcess[str]:
    """The command of that checkout, run in `place` and done."""
    runner = [sys.executable, str(HERE / "pinned_command.py"), str(checkout)]
    environment: Mapping[str, str] = os.environ | {
        "PYTHONPATH": str(checkout),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "XDG_CACHE_HOME": str(place / "cache"),
        "MPLCONFIGDIR": str(Path.home() / ".cache" / "matplotlib"),
    }
    return subprocess.run([*runner, *command], cwd=place, env=environment, capture_output=True, text=True)


def report(found: Mapping[str, Sequence[Compared]], words_may_differ: bool) -> int:
    """Print the table and every difference; gives the exit code."""
    files = [file for compared in found.values() for file in compared]
    kinds = sorted({file.kind for file in files})
    print("\n| files | equal | differ |\n| --- | ---: | ---: |")
    for kind in kinds:
        differ = sum(bool(file.difference) for file in files if file.kind == kind)
        print(f"| {kind} | {sum(file.kind == kind for file in files) - differ} | {differ} |")
    differences = [(name, file) for name, compared in found.items() for file in compared if file.difference]
    print(f"| all | {len(files) - len(differences)} | {len(differences)} |")
    if not files:
        print("no case was compared")
        return 1
    for name, file in differences:
        words = " (words)" if file.words else ""
        print(f"differs{words}: {name}/{file.path} [{file.kind}]: {file.difference}")
    print("\npassed over:")
    for kind, keys in PASSED_OVER.items():
        if kind in kinds:
            print(f"- {kind}: {', '.join(sorted(keys))}")
    counted = [file for _, file in differences if not (file.words and words_may_differ)]
    return 1 if counted else 0


if __name__ == "__main__":
    sys.exit(main())
