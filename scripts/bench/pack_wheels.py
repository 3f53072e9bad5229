"""Pack what a bare machine with a GPU needs for scripts/bench/gpu.sh: this code, Python packages, a slide, one folder.

    python -m scripts.bench.pack_wheels OUT --slide ../shared/data/slides/breast_40x.svs

OUT/code, OUT/site.tar.xz (what setup.cfg asks for, for Python 3.12 on x86-64, beside what such a machine has with
torch) and OUT/shared/data/slides/breast_40x.svs, whatever the slide was called. The decoder in C comes along, built
here, with the libjpeg it is linked to. imagecodecs stays behind, 26 MB that JPEG slides do without. Says how large it
all is; `--wheels` adds to it. Packages are packed again when they are others than last time.
"""

import argparse
import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# What an image with torch for CUDA holds, each with what it needs itself.
THERE = frozenset(
    {
        "jinja2",
        "matplotlib",
        "numpy",
        "packaging",
        "pillow",
        "pytest",
        "pyyaml",
        "safetensors",
        "scikit-image",
        "scipy",
        "tifffile",
        "torch",
        "tqdm",
        "typing-extensions",
    }
)
LEFT_OUT = frozenset({"imagecodecs"})
# What the tests import, and matplotlib's in the version that is tested here.
ALSO = ("hypothesis", "kiwisolver")
FOR_PYTHON = "3.12"
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 24, 17)] + [
    "manylinux2014_x86_64",
    "manylinux1_x86_64",
]
CODE = (
    "wsi_pipeline",
    "scripts",
    "tests",
    "configs",
    "docs/performance.md",
    "setup.cfg",
    "setup.py",
    "pyproject.toml",
)
MOST_BYTES = 60 * 10**6


def main() -> int:
    """The exit code: 1 if it came out larger than 60 MB."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--slide", type=Path, required=True, help="a real 40x slide")
    parser.add_argument(
        "--wheels", type=Path, nargs="*", default=[], help="more wheels, or .tar.xz of packages"
    )
    args = parser.parse_args()
    shutil.rmtree(args.out / "code", ignore_errors=True)
    _copy_code(args.out / "code")
    site, listed = args.out / "site.tar.xz", args.out / "packages.txt"
    wanted = "".join(f"{name}\n" for name in [*pinned(wanted_packages()), *args.wheels])
    if not site.exists() or not listed.exists() or listed.read_text() != wanted:
        listed.unlink(missing_ok=True)
        _pack_packages(site, args.wheels)
        listed.write_text(wanted)
    slides = args.out / "shared" / "data" / "slides"
    slides.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(args.slide, slides / "breast_40x.svs")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB, of {MOST_BYTES / 1e6:.0f} that it may have")
    return int(size > MOST_BYTES)


def wanted_packages() -> list[str]:
    """Canonical names of all that setup.cfg's install_requires needs, and those need, that is not there already."""
    config = configparser.ConfigParser()
    config.read("setup.cfg")
    target = {"python_version": FOR_PYTHON, "python_full_version": f"{FOR_PYTHON}.0", "extra": ""}
    todo = [Requirement(line) for line in config["options"]["install_requires"].split("\n") if line]
    todo += [Requirement(name) for name in ALSO]
    found: set[str] = set()
    while todo:
        asked = todo.pop()
        name = canonicalize_name(asked.name)
        if name in found | THERE | LEFT_OUT or (asked.marker and not asked.marker.evaluate(target)):
            continue
        found.add(name)
        todo += [Requirement(line) for line in requires(name) or []]
    return sorted(found)


def pinned(names: list[str]) -> list[str]:
    """Each with the version that constraints.txt gives it, 'name==version'. Raises ValueError where one has none."""
    lines = re.findall(r"^([\w.-]+)==(\S+)$", Path("constraints.txt").read_text(), re.M)
    versions = {canonicalize_name(name): version for name, version in lines}
    if missing := [name for name in names if name not in versions]:
        raise ValueError(f"constraints.txt: found no version of {', '.join(missing)}; add a line for each")
    return [f"{name}=={versions[canonicalize_name(name)]}" for name in names]


def _copy_code(out: Path) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *CODE],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in tracked.splitlines():
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(name, target)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    (out / "COMMIT").write_text(commit.stdout)
    readers = Path("wsi_pipeline/slides/readers")
    for built in readers.glob("_jpeg_tiles*.so"):
        shutil.copy(built, out / readers)
        linked = subprocess.run(["ldd", built], capture_output=True, text=True, check=True).stdout
        if found := re.search(r"(libjpeg\S*) => (\S+)", linked):
            shutil.copy(Path(found[2]).resolve(), out / readers / found[1])  # found first: setup.py, $ORIGIN


def _pack_packages(out: Path, more: list[Path]) -> None:
    wanted = pinned(wanted_packages())
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-compile",
        "--only-binary=:all:",
    ]
    pip += ["--python-version", FOR_PYTHON, "--implementation", "cp"]
    for platform in PLATFORMS:
        pip += ["--platform", platform]
    with tempfile.TemporaryDirectory() as site:
        wheels = [str(path) for path in more if path.suffix == ".whl"]
        subprocess.run([*pip, "--target", site, *wanted, *wheels], check=True)
        for path in more:
            if path.suffix == ".xz":
                with tarfile.open(path) as packed:
                    packed.extractall(site, filter="data")
        for tests in [*Path(site).rglob("tests"), *Path(site).rglob("__pycache__")]:
            shutil.rmtree(tests, ignore_errors=True)
        with tarfile.open(out, "w:xz") as packed:
            packed.add(site, ".")


if __name__ == "__main__":
    sys.exit(main())
