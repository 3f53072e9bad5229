"""Parts of the pages in docs that scripts write each for itself, between a pair of comments that names them."""

import re
from pathlib import Path

from wsi_pipeline.base.files import write_bytes


def kept_sections(path: Path) -> list[str]:
    """Every section as it stands in the file, in its order, its comments with it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [found[0] for found in _pattern(r"[^>]*").finditer(text)]


def put_section(path: Path, name: str, text: str) -> None:
    """Write the section into the file: in place of its last state, else at the end."""
    old = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    new = f"<!-- {name}: written by a script -->\n{text.strip()}\n<!-- end of {name} -->\n"
    text, replaced = _pattern(re.escape(name)).subn(lambda _: new, old)
    write_bytes(path, (text if replaced else f"{old.rstrip()}\n\n{new}").encode())


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(rf"<!-- ({name}): written by a script -->\n.*?<!-- end of \1 -->\n", re.S)
