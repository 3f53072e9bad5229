"""What the package says of itself: its parts, its dependencies' ranges, and its page on an index."""

import configparser
import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


def lines(section: str, key: str) -> list[str]:
    return [line for line in settings()[section][key].splitlines() if line and not line.startswith("#")]


def needed() -> list[Requirement]:
    return [Requirement(line) for line in lines("options", "install_requires")]


def pins(file: str) -> dict[str, Version]:
    text = (ROOT / file).read_text(encoding="utf-8")
    pairs = [line.split("==") for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def lowest(requirement: Requirement) -> Version:
    (bound,) = requirement.specifier
    assert bound.operator == ">="
    return Version(bound.version)


def test_every_package_is_listed():
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "wsi_pipeline").rglob("*.py")}
    found = {".".join(folder.parts) for folder in folders}
    assert set(lines("options", "packages")) == found | {"wsi_pipeline.configs"}


def test_every_file_that_is_no_python_is_package_data():
    held = settings()["options.package_data"]
    found = {path for pattern in lines("options.package_data", "wsi_pipeline") for path in glob(pattern)}
    others = {
        path
        for path in (ROOT / "wsi_pipeline").rglob("*")
        # Sources are in the source distribution, what is built of them in the wheel (setup.py).
        if path.is_file()
        and path.suffix not in (".py", ".pyc", ".c", ".so")
        and not path.is_relative_to(ROOT / "wsi_pipeline/viewer/web")
    }
    assert found == others
    assert held["wsi_pipeline.configs"].split() == ["*.yaml", "*/*.yaml"]
    configs = [path for path in (ROOT / "configs").rglob("*") if path.is_file()]
    assert {path.suffix for path in configs} == {".yaml"}
    assert max(len(path.relative_to(ROOT / "configs").parts) for path in configs) <= 2


def glob(pattern: str) -> set[Path]:
    return set((ROOT / "wsi_pipeline").glob(pattern))


@pytest.mark.parametrize("requirement", needed(), ids=lambda r: r.name)
def test_the_lowest_version_that_is_tried_is_the_lowest_that_is_allowed(requirement: Requirement):
    tried = pins("constraints-lowest.txt")[canonicalize_name(requirement.name)]
    if requirement.name == "torch":  # constraints-lowest.txt says why another is tried
        assert tried >= lowest(requirement)
    else:
        assert tried == lowest(requirement)


def test_what_a_fresh_machine_installs_is_allowed():
    pinned = pins("constraints.txt")
    extras = [
        line for key in settings()["options.extras_require"] for line in lines("options.extras_require", key)
    ]
    for requirement in [*needed(), *map(Requirement, extras)]:
        assert pinned[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_page_on_an_index_links_to_nothing_that_lies_in_the_repository():
    metadata = settings()["metadata"]
    page = (ROOT / metadata["long_description"].removeprefix("file: ")).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)]*)\)|(?:src|href)=[\"']([^\"']*)", page)
    assert [link for pair in links for link in pair if link and not link.startswith("https://")] == []


def test_the_page_on_an_index_names_every_command_and_extra():
    page = (ROOT / "docs/index_page.md").read_text(encoding="utf-8")
    commands = [line.split(" = ")[0] for line in lines("options.entry_points", "console_scripts")]
    extras = set(settings()["options.extras_require"]) - {"dev"}
    assert [
        name for name in [*commands, *extras] if f"`{name}`" not in page and f"    {name} " not in page
    ] == []


def test_messages_install_extras_from_the_clone_and_only_those_there_are():
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "wsi_pipeline").rglob("*.py"))
    assert "wsi_pipeline[" not in code
    named = set(re.findall(r"pip install '\.\[(\w+)\]'", code))
    assert "openvino" in named
    assert named <= set(settings()["options.extras_require"])


def test_the_citation_is_of_this_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    metadata = settings()["metadata"]
    assert citation["version"] == metadata["version"]
    assert citation["license"] == metadata["license_expression"]
    assert [author["name"] for author in citation["authors"]] == [metadata["author"]]


def test_the_page_on_installing_names_every_extra():
    page = (ROOT / "docs/install.md").read_text(encoding="utf-8")
    named = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert set(named) == set(settings()["options.extras_require"]) - {"dev"}
