import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from wsi_pipeline.base.errors import LockLostError, OutputError, UsageError
from wsi_pipeline.base.files import (
    append_line,
    check_writable,
    clear_leftovers,
    clear_leftovers_of,
    guarded,
    names,
    new_array,
    new_file,
    new_folder,
    new_tree,
    out_path,
    remove,
    remove_leftovers,
    write_bytes,
    write_many,
)
from wsi_pipeline.learning.training.checkpoint import load_checkpoint, save_checkpoint
from wsi_pipeline.results.figures.html import Page, write_page


def test_a_file_is_replaced_whole_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/a.txt"
    write_bytes(path, b"first")
    before = path.stat().st_ino
    write_bytes(path, b"second")
    assert path.read_bytes() == b"second"
    assert path.stat().st_ino != before  # another file was renamed to it
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="run the same command again"):
        write_bytes(tmp_path / "folder", b"a folder lies there")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_empty_files_do_not_count_as_written(tmp_path: Path) -> None:
    write_many(tmp_path / "export", {"0/a.png": b"png", "0/b.png": b""})
    assert names(tmp_path / "export/0") == {"a.png"}
    assert names(tmp_path / "export/1") == set()


def test_a_tree_is_absent_while_it_is_replaced_and_whole_after(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for text in (b"old", b"new"):
        with new_tree(tree, {"root": text, "deep/er/file": text}, "root"):
            assert not tree.exists()
        assert (tree / "deep/er/file").read_bytes() == text
    assert [p.name for p in tmp_path.iterdir()] == ["tree"]


def test_a_killed_process_leaves_parts_that_the_next_run_removes(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from wsi_pipeline.base.files import new_tree
with new_tree(Path(sys.argv[1]) / "tree", {"root": b"1"}, "root"):
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    (tmp_path / "zarr").mkdir()
    for name in ("zarr/0.1234.partial", ".summary.json.77.part", "summary.json"):
        (tmp_path / name).write_bytes(b"x")
    left = {p.name for p in tmp_path.iterdir()} - {"zarr", ".summary.json.77.part", "summary.json"}
    assert len(left) == 1
    assert left.pop().startswith(".tree.")
    clear_leftovers(tmp_path)
    assert {p.name for p in tmp_path.rglob("*")} == {"zarr", "summary.json"}


def test_removing_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    write_many(tmp_path, {"a/b/c": b"1", "d": b"1"})
    for name in ("a", "d", "gone"):
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_is_a_folder_or_a_store_that_is_known(tmp_path: Path) -> None:
    assert out_path("maps/of today") == Path("maps/of today")
    with pytest.raises(UsageError, match="this kind of store cannot be used here"):
        out_path("nosuch://bucket/maps")


def test_what_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "maps")
    assert list((tmp_path / "maps").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be made"):
        check_writable(tmp_path / "file/maps")


def test_an_interrupted_write_takes_its_part_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "a", b"1")
    assert list(tmp_path.iterdir()) == []


# Two containers: each process has the id 7. Each writes one byte many times over, and reads what is there.
WRITER = """
import os, sys
from pathlib import Path
os.getpid = lambda: 7
from wsi_pipeline.base.files import write_bytes
from wsi_pipeline.results.figures.html import Page, write_page
way, path, letter = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
for _ in range(60):
    if way == "bytes":
        write_bytes(path, letter.encode() * 2_000_000, durable=False)
    else:
        write_page(path, Page(letter * 2_000_000, [], []))
    found = path.read_text()
    assert (found.count("a"), found.count("b")) in WHOLE, (len(found), found.count("a"), found.count("b"))
"""


@pytest.mark.parametrize("way", ["bytes", "page"])
def test_processes_of_equal_ids_write_one_file_and_none_fails_or_reads_a_torn_one(
    tmp_path: Path, way: str
) -> None:
    if way == "bytes":
        whole = {(2_000_000, 0), (0, 2_000_000)}
    else:
        whole = set()
        for letter in "ab":
            write_page(tmp_path / "alone.html", Page(letter * 2_000_000, [], []))
            found = (tmp_path / "alone.html").read_text()
            whole.add((found.count("a"), found.count("b")))
        (tmp_path / "alone.html").unlink()
    code = WRITER.replace("WHOLE", repr(whole))
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code, way, tmp_path / "one.html", letter],
            stderr=subprocess.PIPE,
            text=True,
        )
        for letter in "abab"
    ]
    complaints = [run.communicate()[1] for run in runs]
    assert complaints == [""] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["one.html"]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"old")
    with suppress(ZeroDivisionError), new_file(tmp_path / "a") as file:
        file.write(b"half")
        _ = 1 / 0
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"old")]


def test_a_name_as_long_as_names_may_be_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "é" * 127):
        write_bytes(tmp_path / name, b"1")
        assert (tmp_path / name).read_bytes() == b"1"


@contextmanager
def small_disk(most_bytes: int) -> Iterator[None]:
    """No file can be longer: writing fails in its midst, as on a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_disk_that_fills_up_in_mid_file_is_an_error_of_ours_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(100_000):
        with pytest.raises(OutputError, match="cannot be written"):
            write_bytes(tmp_path / "a", b"1" * 200_000)
        with pytest.raises(OutputError, match="cannot be written"), new_folder(tmp_path / "b") as folder:
            new_array(folder / "pixels.npy", (200_000,), np.uint8)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "is_taken"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)]
)
def test_a_file_system_that_knows_no_fsync_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, is_taken: bool
) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    for write in (
        lambda: write_bytes(tmp_path / "a", b"1"),
        lambda: append_line(tmp_path / "b", b"1"),
        lambda: new_tree(tmp_path / "c", {"d": b"1"}, "d").__enter__(),
    ):
        if is_taken:
            write()
        else:
            with pytest.raises(OutputError, match="Input/output error"):
                write()


# A file system of its own, in a mount that only this process sees.
ON_SMALL_DISK = """
mount -t tmpfs -o size=20m,nr_inodes=12 none "$1" && "$2" - "$1" <<'END'
import sys
from pathlib import Path
from wsi_pipeline.base.errors import OutputError
from wsi_pipeline.base.files import new_folder, new_tree, write_bytes
from wsi_pipeline.jobs.locks import hold
place = Path(sys.argv[1])
many = {f"{i}/a": b"1" for i in range(20)}
def tree():
    with new_tree(place / "tree", many, "0/a"): pass
def folder():
    with new_folder(place / "folder") as part:
        for i in range(20): write_bytes(part / str(i), b"1")
def lock():
    with hold(place / "locks" / "a.lock"): pass
(place / "locks").mkdir()
for write in (tree, folder):
    try: write()
    except OutputError as error: print(error)
for i in range(9): (place / f"file{i}").touch()
try: lock()
except OutputError as error: print(error)
print("left:", sorted(p.name for p in place.rglob("*") if "file" not in p.name))
END
"""


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare")
def test_inodes_that_are_used_up_are_named_also_where_taking_back_frees_some(tmp_path: Path) -> None:
    script = ["unshare", "-rm", "sh", "-c", ON_SMALL_DISK, "sh", str(tmp_path), sys.executable]
    ran = subprocess.run(script, capture_output=True, text=True, check=False)
    if "unshare" in ran.stderr or "mount" in ran.stderr:
        pytest.skip(f"no file system can be mounted here: {ran.stderr}")
    lines = ran.stdout.splitlines()
    assert len(lines) == 4, ran.stdout + ran.stderr
    assert all("the file system holds no more files" in line for line in lines[:3]), ran.stdout
    assert lines[3] == "left: ['locks']"


def test_leftovers_are_those_that_are_old_by_the_clock_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = (tmp_path / f".manifest.csv.{name}.part" for name in ("0" * 16, "1" * 16))
    for path in (old, new):
        path.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)  # this machine's clock is a day ahead
    remove_leftovers(tmp_path, ["manifest.csv"])
    assert list(tmp_path.iterdir()) == [new]


def test_what_trying_to_write_left_goes_once_it_is_old(tmp_path: Path) -> None:
    tried = [f".{'0' * 16}.part", f"..{'0' * 16}.part.{'1' * 16}.part"]
    for name in [*tried, ".other.part", "0" * 16 + ".part"]:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    remove_leftovers(tmp_path, ["manifest.csv"])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".other.part", "0" * 16 + ".part"])


def test_a_checkpoint_that_finds_the_disk_full_is_an_error_of_ours_and_the_last_one_stays(
    tmp_path: Path,
) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {}, {"epoch": 1})
    with (
        small_disk(100_000),
        pytest.raises(OutputError, match=r"last\.pt: cannot be written: File too large"),
    ):
        save_checkpoint(path, {}, {"weights": torch.zeros(200_000)})
    assert list(tmp_path.iterdir()) == [path]
    assert load_checkpoint(path, {}, torch.device("cpu")) == {"recipe": {}, "epoch": 1}


def test_a_folder_replaces_the_old_one_whole_and_stays_where_the_block_fails(tmp_path: Path) -> None:
    place = tmp_path / "place"
    for text in ("old", "new"):
        with new_folder(place) as folder:
            write_bytes(folder / text, b"1")
            new_array(folder / "a.npy", (3, 2), np.uint8)[:] = 7
            assert not (place / text).exists()
    with suppress(ZeroDivisionError), new_folder(place) as folder:
        write_bytes(folder / "newer", b"1")
        _ = 1 / 0
    assert sorted(path.name for path in place.iterdir()) == ["a.npy", "new"]
    assert (np.load(place / "a.npy") == 7).all()
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_leftovers_of_named_files_go_and_other_programs_files_stay(tmp_path: Path) -> None:
    code = """
import os, sys
from pathlib import Path
from wsi_pipeline.base.files import new_file, new_folder
with new_folder(Path(sys.argv[1]) / "cache"), new_file(Path(sys.argv[1]) / "last.pt"):
    os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code, tmp_path], check=False).returncode == -9
    strangers = {"movie.mp4.part", ".other.0123456789abcdef.part", ".last.pt.part", "last.pt"}
    for name in strangers:
        (tmp_path / name).touch()
    assert len(list(tmp_path.iterdir())) == len(strangers) + 2
    clear_leftovers_of(tmp_path / "last.pt", tmp_path / "cache", tmp_path / "none/there")
    assert {path.name for path in tmp_path.iterdir()} == strangers


def test_a_guard_is_asked_before_each_write_and_what_it_refuses_is_not_made(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "a", tmp_path / "ab"
    asked, refuses = [], False

    def check() -> None:
        asked.append(1)
        if refuses:
            raise LockLostError("taken over")

    write_bytes(ours / "x", b"before")
    with guarded(ours, check):
        write_bytes(ours / "x", b"first")
        with new_tree(ours / "tree", {"root": b"1"}, "root"):
            pass
        assert len(asked) >= 4
        count, refuses = len(asked), True
        write_bytes(theirs / "x", b"another folder")
        assert len(asked) == count
        with pytest.raises(LockLostError):
            write_bytes(ours / "x", b"late")
        with pytest.raises(LockLostError):
            remove(ours / "x")
        with pytest.raises(LockLostError), new_tree(ours / "tree", {"root": b"2"}, "root"):
            pass
    assert (ours / "x").read_bytes() == b"first"
    assert (ours / "tree/root").read_bytes() == b"1"
    assert sorted(p.name for p in ours.iterdir()) == ["tree", "x"]
    write_bytes(ours / "x", b"after")


def test_a_right_that_is_lost_while_a_file_is_written_leaves_what_lay_there(tmp_path: Path) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise LockLostError("taken over")

    write_bytes(tmp_path / "a/x", b"theirs")
    with guarded(tmp_path / "a", check), pytest.raises(LockLostError):
        write_bytes(tmp_path / "a/x", b"ours, too late")
    assert (tmp_path / "a/x").read_bytes() == b"theirs"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["x"]
