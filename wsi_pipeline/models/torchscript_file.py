"""Networks as TorchScript, of whoever: read so that nothing of theirs touches a file, at loading or later.

TorchScript is code in a language of its own, which torch's reader compiles; methods called __setstate__ run while it
reads. That language has few operators that reach beyond tensors, and code that names one of them is refused before
torch sees it. What torch reads then is an archive made anew of the members that were looked at: two readers of zip
files may find different ones in one file.
"""

import io
import re
import warnings
import zipfile
from pathlib import Path

import torch
from torch import nn

from wsi_pipeline.base.errors import ModelError

# torch.jit.save packs the code alone; weights lie there as they are.
_MOST_PACKED = 64 * 2**20
_MEMBERS = re.compile(
    r"version|byteorder|data\.pkl|constants\.pkl|(data|constants)/\d+|code/.+\.py|\.data/\w+"
)
# What may stand between two words of TorchScript.
_GAP = r"(?:\s|\\\n|#[^\n]*\n)*"
# Operators of the networks' own; others of `ops` are libraries'.
_OPS = "aten|prim|quantized|torchvision"
# Operators that touch files or other machines, and what runs while the file is read; and by which way else these
# could be had. torch.jit.save writes none of them for a network; `getattr` for modules in a sequence alone.
_FORBIDDEN = re.compile(
    rf"\.{_GAP}save\b|\b(?:from_file|load_tensor|rpc_\w+|__setstate__)\b"
    r'|\bgetattr\b(?!\(\w+, "(?!save")[\w.]+"\))'
    rf"|\btorch{_GAP}\.{_GAP}classes\b|\btorch\b(?!{_GAP}\.)|\bops\b(?!{_GAP}\.{_GAP}(?:{_OPS})\b)"
)
_CLASS_IN_PICKLE = re.compile(rb"torch[.\n]classes")


def load_torchscript(weights: bytes, path: Path) -> nn.Module:
    """The network in a file of torch.jit.save; `path` is its name in messages.

    Raises ModelError for what is no TorchScript, for pickled Python objects, and for code that could touch files, all
    before anything of it runs.
    """
    members = _members(weights, path)
    names = {name.partition("/")[2]: name for name in members}
    if "constants.pkl" not in names or not any(name.startswith("code/") for name in names):
        raise ModelError(
            f"{path}: found a pickle of Python objects, which can run any program when it is loaded; expected "
            "TorchScript: save it with torch.jit.save(torch.jit.trace(network, example), path)"
        )
    kept = {full: members[full] for name, full in names.items() if _MEMBERS.fullmatch(name)}
    for name, content in kept.items():
        if found := _forbidden(name, content):
            raise ModelError(
                f"{path}: found {found} in {name}, expected a network that touches no files and runs nothing while "
                "it is loaded; save it with torch.jit.save(torch.jit.trace(network, example), path)"
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own notes on versions of its format
            network: nn.Module = torch.jit.load(io.BytesIO(_packed(kept)), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever torch's reader raises at what is damaged
        raise ModelError(f"{path}: cannot be read as TorchScript: {short(error)}; get it again") from error
    return network


def short(error: BaseException) -> str:
    """The end of what it says, on one line; torch says the reason last."""
    return " ".join(str(error).split())[-300:]


def _members(weights: bytes, path: Path) -> dict[str, bytes]:
    """The archive's files, by name."""
    try:
        with zipfile.ZipFile(io.BytesIO(weights)) as archive:
            found = archive.infolist()
            size = sum(member.file_size for member in found)
            if size > len(weights) + _MOST_PACKED:
                raise ModelError(
                    f"{path}: found {size:,} bytes packed into {len(weights):,}, expected weights as they are, as "
                    "torch.jit.save writes them"
                )
            if len({member.filename for member in found}) < len(found):
                raise ModelError(
                    f"{path}: found two files of one name in it, expected each once; get it again"
                )
            return {member.filename: archive.read(member) for member in found}
    except ModelError:
        raise
    except Exception as error:  # zipfile and zlib raise many kinds at what is damaged
        raise ModelError(
            f"{path}: expected TorchScript (torch.jit.save), which is a zip archive: {short(error)}"
        ) from error


def _forbidden(name: str, content: bytes) -> str:
    """What is not allowed in a member, on one line; nothing where all is."""
    if name.endswith(".pkl"):
        return "torch.classes" if _CLASS_IN_PICKLE.search(content) else ""
    if not name.endswith(".py"):
        return ""
    found = _FORBIDDEN.search(content.decode("utf-8", "replace"))
    return " ".join(found.group().split()) if found else ""


def _packed(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()
