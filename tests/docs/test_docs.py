"""The pages for users: links, names, options and commands in them are those of the code."""

import ast
import importlib
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import yaml

from scripts.sample_slide.make_sample_slide import make_sample_slide
from wsi_pipeline.base.options import options_from_dict
from wsi_pipeline.learning.datasets import SplitOptions
from wsi_pipeline.pipeline.config import InferConfig

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]
)
# All of it is written by a script (`make results`).
WRITTEN_BY_SCRIPT = ROOT / "docs/results.md"
# The long description that goes into the package: an index shows it by itself, away from the other pages.
OF_AN_INDEX = ROOT / "docs/index_page.md"
COMMANDS = (
    "tile-slides",
    "infer-slide",
    "train-model",
    "train-context",
    "tune-model",
    "evaluate-model",
    "explore-patches",
    "view-slides",
    "classify-images",
    "export-map",
    "models",
    "monitor",
)
SHELL = ("mkdir", "cp", "mv", "for", "done")
# Private words, or words that say less than the plain one beside them (docs/glossary.md).
FORBIDDEN = (
    *("told", "said", "judge", "judged", "judges", "judging", "judgement", "anew", "lanes", "appetite"),
    *("drift", "survey", "surveyed", "surveys", "mounts", "sections", "parts", "by wish", "hires"),
)
# Options of dask, pip, docker and apptainer, and files that are not of this repository.
OF_OTHER_PROGRAMS = frozenset(
    {
        *("--nthreads", "--resources", "--constraint", "--extra-index-url"),
        *("--build-arg", "--gpus", "--nv", "--bind"),
    }
)
OF_OTHERS = frozenset({"make_idc.py", "night.py"})
# The line above a block that is not run says so by one of these.
NEEDS = re.compile(r"\b(your|yours|you have|needs?|PATCHES|SLIDES|DATA|examples|by hand)\b")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
SCRIPT_SECTION = re.compile(r"<!-- ([^>]*): written by a script -->\n.*?<!-- end of \1 -->\n", re.S)


def ident(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """The page without what scripts write, code blocks and code spans."""
    text = SCRIPT_SECTION.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def spans(page: Path) -> list[str]:
    """Code in the running text and the tables, without what scripts write."""
    text = FENCE.sub("", SCRIPT_SECTION.sub("", page.read_text(encoding="utf-8")))
    return re.findall(r"`([^`\n]+)`", text)


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub makes them."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {*plain, *(f"{name}-{n}" for name in plain for n in range(1, plain.count(name)))}


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """(language, text, the line above) of each fenced block."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in FENCE.finditer(text):
        above = [line for line in text[: match.start()].splitlines() if line.strip()]
        found.append((match[1], match[2], above[-1] if above else ""))
    return found


def command_lines(text: str) -> Iterator[list[str]]:
    """The words of each line that calls a command or a script of ours; what a shell does around it is left out."""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        words = shlex.split(line, comments=True) if line.count("'") % 2 == 0 else []
        while words and ("=" in words[0] or words[0] in ("srun", ".venv/bin/python")):
            words.pop(0)
        if words and (words[0] in COMMANDS or words[:2] == ["python", "-m"]):
            yield words[: next((i for i, word in enumerate(words) if word in ("|", "&&")), None)]
        if words and words[0] == "torchrun" and "-m" in words:
            yield ["python", *words[words.index("-m") :]]


@cache
def options_of(module: str) -> frozenset[str]:
    """The long options that `python -m module --help` lists; none of a script that takes no options."""
    if "argparse" not in (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"):
        return frozenset()
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return frozenset(re.findall(r"--[a-z][a-z0-9-]*", done.stdout))


@cache
def parser_options(command: str) -> frozenset[str]:
    """The long options of one of our commands, from its own parser's --help."""
    module = importlib.import_module(f"wsi_pipeline.cli.{command.replace('-', '_')}")
    text = StringIO()
    with redirect_stdout(text), pytest.raises(SystemExit):
        module.main(["--help"])
    described = text.getvalue().split("example:")[0]  # an option in an example alone is none
    return frozenset(re.findall(r"--[a-z][a-z0-9-]*", described))


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("page", PAGES, ids=ident)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no such file"
        assert not anchor or anchor in anchors(target), f"{link}: no such heading"


def test_every_page_is_linked_from_the_readme_and_knows_the_glossary() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        if page not in (ROOT / "README.md", OF_AN_INDEX):
            assert f"({ident(page)}" in readme, f"README.md: no link to {page.name}"
        if page not in (WRITTEN_BY_SCRIPT, OF_AN_INDEX, ROOT / "docs/glossary.md"):
            assert "glossary.md" in page.read_text(encoding="utf-8"), f"{page.name}: no link to the glossary"


@pytest.mark.parametrize("page", PAGES, ids=ident)
def test_files_and_modules_that_a_page_names_are_there(page: Path) -> None:
    text = SCRIPT_SECTION.sub("", page.read_text(encoding="utf-8"))
    if page != WRITTEN_BY_SCRIPT:
        for path in re.findall(r"\b(?:wsi_pipeline|scripts|tests|configs|docs|docker)/[\w/.-]*[\w/]", text):
            assert (ROOT / path).exists(), f"{path}: no such file"
    # After a slash it is a file, as docker/wsi_pipeline.def; wsi_pipeline.sif is the image that is built from that.
    for module in re.findall(r"(?<!/)\b(?:wsi_pipeline(?!\.sif\b)|scripts)(?:\.[a-zA-Z_]\w*)+", text):
        path = ROOT / module.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").exists(), f"{module}: no such module"
    for path in re.findall(r"\b[a-z_]+(?:/[a-z_]+)*\.py\b", " ".join(spans(page)) + prose(page)):
        here = (ROOT / path, ROOT / "wsi_pipeline" / path)
        assert path in OF_OTHERS or any(place.exists() for place in here), f"{path}: no such file"


def test_the_classes_that_configs_belong_to_are_where_the_pages_put_them() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for name, path in re.findall(r"`(\w+Options)`(?: in | \()`?([\w/]+\.py)", text):
            file = ROOT / path if path.startswith("wsi_pipeline") else ROOT / "wsi_pipeline" / path
            assert f"class {name}" in file.read_text(encoding="utf-8"), f"{page.name}: no {name} in {path}"


@pytest.mark.parametrize("page", PAGES, ids=ident)
def test_options_in_commands_are_those_of_their_help(page: Path) -> None:
    text = SCRIPT_SECTION.sub("", page.read_text(encoding="utf-8"))
    code = [block for language, block, _ in blocks(page) if language in ("", "bash", "sh")]
    code += [span for span in re.findall(r"`([^`\n]+)`", FENCE.sub("", text)) if " --" in span]
    for words in (words for block in code for words in command_lines(block)):
        asked = {word.partition("=")[0] for word in words[1:] if re.match(r"--[a-z]", word)}
        known = options_of(words[2]) if words[0] == "python" else parser_options(words[0])
        assert asked <= known, f"{' '.join(words)}: no {', '.join(sorted(asked - known))}"


@pytest.mark.parametrize("page", PAGES, ids=ident)
def test_options_named_alone_belong_to_some_command(page: Path) -> None:
    scripts = set(re.findall(r"\bscripts(?:\.[a-z_][a-z_0-9]*)+", page.read_text(encoding="utf-8")))
    known = OF_OTHER_PROGRAMS.union(*map(parser_options, COMMANDS), *map(options_of, scripts))
    for span in spans(page):
        if match := re.match(r"(--[a-z][a-z-]*)", span):
            assert match[1] in known, f"{span}: no command has it"


@pytest.mark.parametrize("page", PAGES, ids=ident)
def test_python_blocks_compile_and_import_what_is_there(page: Path) -> None:
    for language, text, _ in blocks(page):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("wsi_pipeline"):
                module = importlib.import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name), f"{node.module} has no {name.name}"


@pytest.mark.parametrize("page", PAGES, ids=ident)
def test_config_keys_that_a_page_names_are_known(page: Path) -> None:
    for span in spans(page):
        if re.match(r"(grid|classify|delineate|tissue|quality): \{|context: ", span):
            values = yaml.safe_load(span.replace("off | require", "off").replace("auto | ", ""))
            if "N" not in str(values):  # a number of the reader's
                options_from_dict(InferConfig, values, page.name)
    for language, text, _ in blocks(page):
        if language == "yaml" and text.startswith("split:"):
            options_from_dict(SplitOptions, yaml.safe_load(text)["split"], page.name)


@pytest.mark.parametrize("page", [p for p in PAGES if p != WRITTEN_BY_SCRIPT], ids=ident)
def test_pages_keep_to_plain_words(page: Path) -> None:
    text = re.sub(r"[Ww]hole mounts|[Ff]rozen sections", "", prose(page))  # pathology's own
    found = re.findall(rf"\b(?:{'|'.join(FORBIDDEN)})\b", text, re.I)
    assert not found, (
        f"{page.name}: {', '.join(sorted(set(found)))}: see docs/glossary.md for the word to use"
    )


@pytest.mark.parametrize("page", PAGES, ids=ident)
def test_nobody_is_sent_to_an_index_that_does_not_have_us(page: Path) -> None:
    assert "install 'wsi_pipeline" not in page.read_text(encoding="utf-8")
    assert "install wsi_pipeline" not in page.read_text(encoding="utf-8")


def test_the_readme_needs_no_folder_outside_the_clone() -> None:
    assert "../" not in (ROOT / "README.md").read_text(encoding="utf-8")


def is_run(text: str) -> bool:
    """Whether each line of a block calls a command of ours, or a shell's own that prepares for it."""
    return all(
        line.split()[0] in (*COMMANDS, *SHELL) or line.lstrip().startswith("python -m scripts.")
        for line in text.splitlines()
        if line.strip()
    )


def runnable(page: Path) -> list[str]:
    """The blocks of the page that run as they stand: the line above says of all others what they need."""
    return [
        text
        for language, text, above in blocks(page)
        if language == "" and any(command_lines(text)) and is_run(text) and not NEEDS.search(above)
    ]


def test_pages_have_blocks_that_run() -> None:
    counts = {page.name: len(runnable(page)) for page in PAGES}
    fewest = {"README.md": 5, "using.md": 4, "training.md": 1}
    assert all(counts[name] >= fewest[name] for name in fewest), counts


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as somebody has it after `make demo`: configs, and a small sample slide in demo/."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "configs").symlink_to(ROOT / "configs")
    make_sample_slide(folder / "demo/sample.tiff", 2.0, 2.0)
    programs = folder / "bin"
    programs.mkdir()
    for name in (*COMMANDS, "python"):
        module = f"-m wsi_pipeline.cli.{name.replace('-', '_')}" if name != "python" else ""
        path = programs / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return folder


def run_commands(page: Path, clone: Path, folder: Path) -> None:
    """Run the page's blocks in `folder`, in their order, as somebody does who has the clone."""
    for name in ("configs", "demo", "bin"):
        (folder / name).symlink_to(clone / name)
    env = environment() | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    for text in runnable(page):
        command = ["bash", "-e", "-c", text]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr, done.stderr[-2000:]


# Pages whose commands need more than the sample slide, and are run by a test of their own.
RUN_ELSEWHERE = ("training.md", "own_slides.md")


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if runnable(p) and p.name not in RUN_ELSEWHERE], ids=ident)
def test_commands_of_a_page_run_on_the_sample_slide(page: Path, clone: Path, tmp_path: Path) -> None:
    run_commands(page, clone, tmp_path)


@pytest.mark.slow
def test_training_on_generated_slides_runs_and_so_does_the_evaluation_in_python(
    clone: Path, tmp_path: Path
) -> None:
    run_commands(ROOT / "docs/training.md", clone, tmp_path)  # leaves the folder `patches` of the example
    (example,) = (text for language, text, _ in blocks(ROOT / "docs/evaluating.md") if language == "python")
    command = [sys.executable, "-c", example]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 <= float(done.stdout) <= 1
