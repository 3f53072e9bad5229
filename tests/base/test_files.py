import os
import subprocess
import sys
from pathlib import Path

import pytest

from wsi_pipeline.base.errors import OutputError, UsageError
from wsi_pipeline.base.files import (
    check_writable,
    clear_leftovers,
    names,
    new_tree,
    out_path,
    remove,
    write_bytes,
    write_many,
)


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
    assert {p.name for p in tmp_path.iterdir()} == {
        "tree.part",
        "zarr",
        ".summary.json.77.part",
        "summary.json",
    }
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
