"""Only base/files.py opens files to write: whatever a command leaves is there whole or not at all."""

import ast
import re
from pathlib import Path

import pytest

import wsi_pipeline

PACKAGE = Path(wsi_pipeline.__file__).parent
# Who writes beside it, and why that is no file of results.
EXEMPT = {
    "base/files.py": "the one writer",
    "jobs/locks.py": "a lock is made by linking, and beaten in place",
    "jobs/events.py": "a log, to which lines are added",
    "slides/local_copies.py": "copies of slides, in a folder that no other process knows",
    "learning/datasets/sharing.py": "memory that processes share, a file that has no name once all have it",
    "cli/common.py": "the null device, where a standard stream is closed",
    "cli/streams.py": "the null device, where a standard stream can no longer be written",
}
# Calls that write or move files, whoever they are called on.
WRITERS = {
    *("write_text", "write_bytes", "touch", "rename", "hardlink_to", "symlink_to", "fdopen", "open_memmap"),
    *("mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryFile", "TemporaryDirectory"),
    *("to_csv", "to_json", "tofile", "copyfile", "copytree", "copy2", "move", "imwrite", "save_file"),
}
# Calls that write into what they are given first or second: a file that base/files.py opened, or bytes in memory.
SAVERS = {"save", "savez", "savez_compressed", "savetxt", "savefig"}
OPENED = {"file", "content"}


def writes(source: str) -> list[str]:
    """The calls in the source that open a file to write, or move one."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if _writes(call)]


def _writes(call: ast.Call) -> bool:
    function = ast.unparse(call.func)
    name = function.rpartition(".")[2]
    is_method = isinstance(call.func, ast.Attribute)
    if name == "open":
        if any(
            keyword.arg == "fileobj" and ast.unparse(keyword.value) in OPENED for keyword in call.keywords
        ):
            return False  # into a file that the one writer opened
        values = [*call.args, *(keyword.value for keyword in call.keywords)]
        texts = [value.value for value in values if isinstance(value, ast.Constant)]
        flags = " ".join(map(ast.unparse, values)) if function == "os.open" else ""
        return "O_WR" in flags or "O_RDWR" in flags or any(_is_writing_mode(text) for text in texts)
    if name == "replace":  # of a path: one argument; of a text two, of a dataclass or a time by keyword
        return is_method and len(call.args) + len(call.keywords) == 1 and bool(call.args)
    if name in SAVERS:
        to_memory = function == "safetensors.torch.save"
        return is_method and not to_memory and not OPENED & {ast.unparse(value) for value in call.args[:2]}
    if function in ("os.replace", "os.rename", "os.link", "shutil.copy"):
        return True
    return is_method and name in WRITERS


def _is_writing_mode(value: object) -> bool:
    return (
        isinstance(value, str) and bool(re.fullmatch("[rwxabt+]+", value)) and bool(set("wxa+") & set(value))
    )


@pytest.mark.parametrize(
    "source",
    [
        "beside.write_text(text)",
        "beside.replace(path)",
        "beside.open('w', newline='')",
        "open(path, mode='ab')",
        "os.open(path, os.O_WRONLY | os.O_CREAT)",
        "tempfile.mkstemp(dir=folder)",
        "os.fdopen(handle, 'wb')",
        "torch.save(state, beside)",
        "figure.savefig(beside, format='png')",
        "np.save(folder / 'whole.npy', values)",
        "np.lib.format.open_memmap(path, 'w+', np.uint8, shape)",
        "part.rename(path)",
        "image.save(path)",
        "tarfile.open(path, 'w')",
        "tarfile.open(fileobj=beside, mode='w')",
    ],
)
def test_the_rule_knows_a_file_that_is_opened_to_write(source: str) -> None:
    assert writes(source) == [source]


@pytest.mark.parametrize(
    "source",
    [
        "path.open('rb')",
        "Image.open(path)",
        "name.replace('_', ' ')",
        "replace(card, context=None)",
        "write_bytes(path, data)",
        "figure.savefig(content, format='png')",
        "np.save(file, values)",
        "torch.save(state, file)",
        "os.open(path, os.O_RDONLY)",
        "tarfile.open(fileobj=file, mode='w')",
    ],
)
def test_the_rule_leaves_what_only_reads_or_goes_by_the_one_writer(source: str) -> None:
    assert writes(source) == []


def test_no_module_but_the_one_writer_opens_files_to_write() -> None:
    found = {
        str(path.relative_to(PACKAGE)): calls
        for path in sorted(PACKAGE.rglob("*.py"))
        if (calls := writes(path.read_text(encoding="utf-8")))
    }
    assert {name: calls for name, calls in found.items() if name not in EXEMPT} == {}
    assert found.keys() == EXEMPT.keys()  # an exemption that nobody needs goes
