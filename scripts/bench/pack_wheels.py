"""Pack what a bare machine with a GPU needs for scripts/bench/gpu.sh: this code, Python packages, a slide, one folder.

    python -m scripts.bench.pack_wheels OUT --slide ../shared/data/slides/breast_40x.svs

OUT/code, OUT/site.tar.xz (packages for Python 3.12 on x86-64 beside torch, its triton, numpy, scipy and the like, which
the machine has) and OUT/shared/data/slides. The decoder in C comes along, built here, with the libjpeg it is linked to.
imagecodecs stays behind, 26 MB that JPEG slides do without. Says how large it all is; `--extra` names more packages.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

PACKAGES = (
    "annotated-types",
    "anyascii",
    "donfig",
    "google-crc32c",
    "kiwisolver",
    "numcodecs",
    "openslide-bin",
    "openslide-python",
    "pydantic",
    "pydantic_core",
    "shapely",
    "simplejpeg",
    "typing-inspection",
    "zarr",
)
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
    parser.add_argument("--slide", type=Path, required=True)
    parser.add_argument(
        "--wheels", type=Path, nargs="*", default=[], help="more wheels, or .tar.xz of packages"
    )
    args = parser.parse_args()
    shutil.rmtree(args.out / "code", ignore_errors=True)
    _copy_code(args.out / "code")
    if not (args.out / "site.tar.xz").exists():
        _pack_packages(args.out / "site.tar.xz", args.wheels)
    slides = args.out / "shared" / "data" / "slides"
    slides.mkdir(parents=True, exist_ok=True)
    if not (slides / "breast_40x.svs").exists():
        shutil.copyfile(args.slide, slides / "breast_40x.svs")
    size = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")
    return int(size > MOST_BYTES)


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
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", Path("constraints.txt").read_text(), re.M))
    wanted = [f"{name}=={pins[name]}" for name in PACKAGES]
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
    pip += ["--python-version", "3.12", "--implementation", "cp"]
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
