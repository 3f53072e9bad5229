"""Parts of the pages in docs that scripts write each for itself, between a pair of comments that names them."""

import re
from pathlib import Path

from wsi_pipeline.base.files import write_bytes


def kept_section(path: Path, name: str) -> str:
    """The section as it stands in the file, its comments with it; empty where there is none."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    found = _pattern(name).search(text)
    return found[0] if found else ""


def put_section(path: Path, name: str, text: str) -> None:
    """Write the section into the file: in place of its last state, else at the end."""
    old = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    new = f"<!-- {name}: written by a script -->\n{text.strip()}\n<!-- end of {name} -->\n"
    text, replaced = _pattern(name).subn(lambda _: new, old)
    write_bytes(path, (text if replaced else f"{old.rstrip()}\n\n{new}").encode())


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(
        rf"<!-- {re.escape(name)}: written by a script -->\n.*?<!-- end of {re.escape(name)} -->\n", re.S
    )
