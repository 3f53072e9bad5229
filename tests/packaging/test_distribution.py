"""What people install: the source distribution, the wheel built from it, and the wheel's commands.

Nothing is downloaded. The wheel goes into a new, empty environment, beside exactly those packages that it declares and
that those declare in turn, as links into the environment that runs the tests, which has the versions of
constraints.txt. So this shows that the wheel holds all its files, and that what it declares is enough; it does not
show that an index has these packages.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from conftest import write_slide
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_infer import section

ROOT = Path(__file__).resolve().parents[2]
SIDE_PRODUCTS = shutil.ignore_patterns(
    ".git",
    ".venv*",
    ".*_cache",
    ".hypothesis",
    "__pycache__",
    "*.egg-info",
    "build",
    "dist",
    "demo",
    "runs",
    "node_modules",
)
BUILD_SDIST = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def run(*command: object, cwd: Path) -> str:
    """What the command prints, in an environment that leads to no checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from a copy of the tree."""
    work = tmp_path_factory.mktemp("sdist")
    shutil.copytree(ROOT, work / "tree", ignore=SIDE_PRODUCTS)
    run(sys.executable, "-c", BUILD_SDIST, work, cwd=work / "tree")
    (archive,) = work.glob("wsi_pipeline-*.tar.gz")
    return archive


@pytest.fixture(scope="session")
def unpacked(sdist: Path) -> Path:
    """The folder that the source distribution unpacks to."""
    with tarfile.open(sdist) as archive:
        archive.extractall(sdist.parent, filter="data")
    return sdist.parent / sdist.name.removesuffix(".tar.gz")


def build_wheel(source: Path, folder: Path) -> Path:
    run(*PIP, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("wsi_pipeline-*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    return build_wheel(sdist, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def environment(wheel: Path) -> Path:
    """A new environment with the wheel and what it declares."""
    work = wheel.parent
    run(sys.executable, "-m", "venv", "--without-pip", work / "env", cwd=work)
    python = work / "env/bin/python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=work).strip())
    assert not list(site.iterdir())
    with_wheel = (*PIP, "--python", python, "install", "--no-index", wheel)
    run(*with_wheel, "--no-deps", cwd=work)
    for declared in declared_by(Distribution.at(next(site.glob("wsi_pipeline-*.dist-info")))):
        link(declared, site)
    run(*with_wheel, cwd=work)  # pip finds every declared package, in a version that the wheel allows
    run(*PIP, "--python", python, "check", cwd=work)
    return work / "env"


def declared_by(wheel: Distribution) -> list[Distribution]:
    """The packages that the wheel needs without its extras, and those that they need."""
    found: dict[str, Distribution] = {}
    wanted = [(Requirement(text), "") for text in wheel.requires or ()]
    while wanted:
        requirement, extra = wanted.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name in found and not requirement.extras:
            continue
        found[name] = distribution(name)
        needs = [Requirement(text) for text in found[name].requires or ()]
        wanted += [(need, extra) for extra in ("", *requirement.extras) for need in needs]
    return list(found.values())


def link(package: Distribution, site: Path) -> None:
    """Links to the package's files, at the same places in `site`; scripts in bin/ are left out."""
    for file in package.files or ():
        if ".." not in file.parts and not (site / file).exists():
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            (site / file).symlink_to(Path(str(package.locate_file(file))))


@pytest.mark.slow
def test_the_source_distribution_holds_every_file_of_the_repository(sdist: Path) -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository: this is no clone")
    tracked = run("git", "ls-files", cwd=ROOT).splitlines()
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tracked) - held - {".gitignore"} == set()
    assert not [name for name in held if "__pycache__" in name or name.endswith(".pyc")]


@pytest.mark.slow
def test_tests_run_from_the_unpacked_source_distribution(unpacked: Path) -> None:
    command = (
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/base",
        "tests/packaging",
    )
    run(*command, "-m", "not slow", cwd=unpacked)
    code = "import wsi_pipeline; print(wsi_pipeline.__file__)"
    assert Path(run(sys.executable, "-c", code, cwd=unpacked).strip()).is_relative_to(unpacked)


@pytest.mark.slow
def test_the_wheel_maps_a_slide_with_only_what_it_declares(environment: Path, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "made.tiff", section(), mpp=(4.0, 4.0))
    code = "import wsi_pipeline; print(wsi_pipeline.__file__)"
    assert Path(run(environment / "bin/python", "-c", code, cwd=tmp_path).strip()).is_relative_to(environment)
    run(environment / "bin/infer-slide", slide, "--out", "maps", "--device", "cpu", cwd=tmp_path)
    summary = json.loads((tmp_path / "maps/made/summary.json").read_text())
    assert summary["counts"]["cells"]["scored"] > 0
    assert (tmp_path / "maps/made/report.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_wheels_commands_know_the_shipped_configs_by_name(environment: Path, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "made.tiff", section(), mpp=(4.0, 4.0))
    tile = (environment / "bin/tile-slides", slide, "--out", "tiles", "--config")
    run(*tile, "tile_idc", cwd=tmp_path)
    summary = json.loads((tmp_path / "tiles/made/summary.json").read_text())
    assert summary["map_recipe"]["options"]["grid"]["mpp"] == 4
    refused = subprocess.run([*tile, "tile_idx"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "tile_40x, tile_idc" in refused.stderr
    code = "from wsi_pipeline.base.configs import config_names; print(*config_names(), sep='\\n')"
    names = run(environment / "bin/python", "-c", code, cwd=tmp_path).split()
    configs = ROOT / "configs"
    assert names == sorted(
        path.relative_to(configs).with_suffix("").as_posix() for path in configs.rglob("*.yaml")
    )


@pytest.mark.slow
def test_the_wheel_holds_the_page_and_none_of_what_it_is_made_of(wheel: Path) -> None:
    if not (ROOT / "wsi_pipeline/viewer/static/app.js").is_file():
        pytest.skip("needs the page, which is not built: make page")
    with zipfile.ZipFile(wheel) as archive:
        held = {name.partition("/viewer/")[2] for name in archive.namelist() if "/viewer/" in name}
    assert {"static/index.html", "static/app.js", "static/app.css", "static/licences.txt"} <= held
    assert not [name for name in held if name.startswith("web/")]


@pytest.mark.slow
def test_the_images_build_the_same_wheel_from_the_files_that_they_copy(wheel: Path, tmp_path: Path) -> None:
    recipe = (ROOT / "docker/wsi_pipeline.def").read_text(encoding="utf-8")
    copied = [line.split()[0] for line in recipe.partition("%files\n")[2].partition("\n\n")[0].splitlines()]
    allowed = (ROOT / "docker/Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert sorted(copied) == sorted(line[1:] for line in allowed if line.startswith("!"))
    source = tmp_path / "source"
    for name in copied:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=SIDE_PRODUCTS)
        else:
            shutil.copy(ROOT / name, source / name)
    with zipfile.ZipFile(build_wheel(source, tmp_path)) as ours, zipfile.ZipFile(wheel) as theirs:
        assert sorted(ours.namelist()) == sorted(theirs.namelist())
