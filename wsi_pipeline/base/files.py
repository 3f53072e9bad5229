"""Files of results, in a folder or on an object store: each is there whole or not at all.

Everything that a command leaves goes through here. A folder is a `Path`: a file is written beside, brought to the
disk and renamed, so that neither a kill nor a power cut leaves half of one. The name beside is random: processes of
many machines and containers, where process ids repeat, may write one file, and the last one stays. An object store
is a `UPath` ("s3://..."): a put is whole by itself, there are no renames, and a tree is there once its root file is,
which is put last.

Where several processes may come to write one folder, `guarded` makes sure of the right to it before each write.
"""

import errno
import fcntl
import glob
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from wsi_pipeline.base.errors import OutputError, UsageError, WsiError

if TYPE_CHECKING:  # only where results lie on an object store
    from upath import UPath
    from zarr.abc.store import Store

    OutPath: TypeAlias = Path | UPath
else:
    OutPath: TypeAlias = Path

# What is not yet whole ends so: ours, and zarr's own.
PART, ZARR_PART = ".part", ".partial"
# Nothing that is written to a batch's own folder takes so long.
LEFT_S = 600.0
# Of the 255 bytes that a name may have, this many are the file's own; the rest is for what a part's name adds.
NAME_BYTES = 230

_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the quota is used up; free some space",
    errno.EROFS: "the file system is read-only; mount it writable, or choose another --out",
    errno.EACCES: "permission denied; see to it that you may write there, or choose another --out",
    errno.EPERM: "not permitted; see to it that you may write there, or choose another --out",
}


def out_path(text: str) -> OutPath:
    """The place that the text names: a folder, or "s3://bucket/prefix" and whatever else fsspec knows.

    Credentials, region and endpoint of a store are those of its usual environment and config files. Raises
    UsageError when the packages for that kind of store are not installed.
    """
    if "://" not in text:
        return Path(text)
    try:
        from upath import UPath

        path = UPath(text.rstrip("/"), use_listings_cache=False)  # another process's files must be seen
        _ = path.fs
    except (ImportError, ValueError) as error:
        raise UsageError(
            f"{text}: this kind of store cannot be used here ({error}); for s3:// "
            f"pip install '.[s3]', else give a local folder"
        ) from error
    return path


def check_writable(out: OutPath, option: str = "--out") -> None:
    """Make the folder if need be, and try to write there.

    Raises UsageError saying why it cannot be; `option` is the argument that named the folder.
    """
    probe = out / f".{secrets.token_hex(8)}{PART}"
    try:
        if isinstance(out, Path):
            out.mkdir(parents=True, exist_ok=True)
        write_bytes(probe, b"", durable=False)
        remove(probe)
    except (OSError, OutputError) as error:
        reason = _reason(out, error.__cause__ if isinstance(error, OutputError) else error)
        raise UsageError(f"{option} {out}: cannot be made, or not be written to: {reason}") from error


@contextmanager
def guarded(folder: OutPath, check: Callable[[], None]) -> Iterator[None]:
    """While the block runs, `check` is called before anything is written, replaced or removed in the folder.

    It is called from any thread, and what it raises keeps the write from being made: a process that slept, and whose
    lock another one took over meanwhile, leaves nothing in the other one's results.
    """
    place = str(folder)
    _guards[place] = check
    try:
        yield
    finally:
        del _guards[place]


# What is called before a write in a folder, by the folder's path.
_guards: dict[str, Callable[[], None]] = {}


def _check_guard(path: OutPath) -> None:
    place = str(path)
    for folder, check in list(_guards.items()):
        if place == folder or place.startswith(f"{folder}/"):
            check()


@contextmanager
def writing(path: OutPath) -> Iterator[None]:
    """Turns what goes wrong while the block writes at `path` into an OutputError that says what to do.

    Raises what the guard of a folder above it raises.
    """
    _check_guard(path)
    try:
        yield
    except WsiError:
        raise
    except Exception as error:
        if isinstance(path, Path) and not isinstance(error, OSError):
            raise
        raise OutputError(
            f"{path}: cannot be written: {_reason(path, error)}, and run the same command again; what was written "
            f"so far is whole"
        ) from error


@contextmanager
def reading(path: OutPath) -> Iterator[None]:
    """Turns what an object store raises while the block reads there into an OutputError that says what to do.

    Of a folder, an OSError stays what it is.
    """
    try:
        yield
    except WsiError:
        raise
    except Exception as error:  # a store raises what it likes
        if isinstance(path, Path):
            raise
        raise OutputError(f"{path}: cannot be read: {_reason(path, error)}") from error


def _reason(path: OutPath, error: BaseException | None) -> str:
    """What went wrong, and what to do about it."""
    if isinstance(path, Path) and isinstance(error, OSError):
        if error.errno == errno.ENOSPC and (_NO_INODES in getattr(error, "__notes__", ()) or _has_room(path)):
            return "the file system holds no more files, though it has room (its inodes are used up); remove files"
        return _REMEDIES.get(
            error.errno or 0, f"{error.strerror or error}; see to it, or choose another --out"
        )
    # A store has errors of its own kinds: no credentials, no answer from the endpoint.
    return f"{' '.join(str(error).split())}; see to the store, its address and your credentials"


def note_inodes(path: Path, error: BaseException) -> None:
    """Note on the error that inodes are used up; ask before what was begun is removed, which frees some."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and _has_room(path):
        error.add_note(_NO_INODES)


_NO_INODES = "its inodes are used up"


def _has_room(path: Path) -> bool:
    """Whether the file system has bytes left, but no place for another file."""
    for folder in path.parents:
        try:
            state = os.statvfs(folder)
        except (OSError, AttributeError):  # not made yet; or Windows
            continue
        return state.f_files > 0 and state.f_favail == 0 and state.f_bavail > 0
    return False


@contextmanager
def new_file(path: OutPath, durable: bool = True) -> Iterator[IO[bytes]]:
    """A file for the block to write into, for what writes by itself: at `path`, whole, once the block has ended.

    Where the block fails, what lay at `path` stays. Folders above it are made. `durable`: it is on the disk then, not
    only in the system's memory. Raises OutputError.
    """
    with writing(path):
        if not isinstance(path, Path):
            content = io.BytesIO()
            yield content
            _check_guard(path)
            path.fs.pipe_file(path.path, content.getvalue())
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _beside(path)
        try:
            with part.open("xb") as file:
                yield file
                if durable:
                    file.flush()
                    _fsync(file.fileno())
            _check_guard(path)
            part.replace(path)
        except BaseException as error:
            note_inodes(path, error)
            part.unlink(missing_ok=True)
            raise
        if durable:
            _sync(path.parent)


def write_bytes(path: OutPath, data: bytes, durable: bool = True) -> None:
    """Write the file, whole or not at all, as `new_file` does. Raises OutputError."""
    with new_file(path, durable) as file:
        file.write(data)


def write_new_bytes(path: OutPath, data: bytes) -> bool | None:
    """Put the file on an object store if there is none yet: whether this call made it; None: the store cannot tell.

    That a store heeds the condition is proved once, on an object of its own beside it. Raises OutputError.
    """
    assert not isinstance(path, Path)
    with writing(path):
        if not _heeds_conditions(path):
            return None
        return _put_if_new(path, data)


def _put_if_new(path: "UPath", data: bytes) -> bool:
    try:
        path.fs.pipe_file(path.path, data, mode="create")
    except FileExistsError:
        return False
    except Exception as error:
        # s3fs has no error of its own for a condition that did not hold.
        if "PreconditionFailed" in str(error) or "pre-condition" in str(error).lower():
            return False
        raise
    return True


# Of stores that were asked, whether they heed a condition, by protocol and address.
_heeding: dict[tuple[str, str], bool] = {}


def _heeds_conditions(path: "UPath") -> bool:
    store = (path.protocol, repr(sorted(path.storage_options.items(), key=str)))
    if store not in _heeding:
        probe = path.with_name(f".{secrets.token_hex(8)}{PART}")
        try:
            _heeding[store] = _put_if_new(probe, b"1") and not _put_if_new(probe, b"2")
        except Exception:  # a store that knows no such put says so in its own way
            _heeding[store] = False
        with suppress(FileNotFoundError):
            probe.fs.rm(probe.path)
    return _heeding[store]


# What `check_writable` tries, and what that one is written as.
_PROBE = re.compile(rf"\.(\.[0-9a-f]{{16}}{re.escape(PART)}\.)?[0-9a-f]{{16}}{re.escape(PART)}")


def remove_leftovers(folder: OutPath, names: Sequence[str]) -> None:
    """Remove what processes left that were killed while they wrote files of these names in the folder, or tried it.

    What is younger than LEFT_S may be being written. Times are compared by the clock of the file system, which may be
    another machine's.
    """
    if isinstance(folder, Path):
        begun = [path for name in names for path in folder.glob(f".{glob.escape(name)}.*{PART}")]
        probes = [path for path in folder.glob(f".*{PART}") if _PROBE.fullmatch(path.name)]
        _remove_old(folder, begun + probes)


def remove_old(folder: Path, name: re.Pattern[str]) -> None:
    """Remove files of the folder of whose names that is the whole, but for those younger than LEFT_S."""
    if folder.is_dir():
        _remove_old(folder, [path for path in folder.iterdir() if name.fullmatch(path.name)])


def _remove_old(folder: Path, paths: list[Path]) -> None:
    if not paths:
        return
    with suppress(OSError):
        probe = folder / f".{secrets.token_hex(8)}{PART}"
        probe.touch(exist_ok=False)
        now = probe.stat().st_mtime
        probe.unlink()
        for path in paths:
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > LEFT_S:
                    path.unlink()


def write_many(folder: OutPath, files: Mapping[str, bytes]) -> None:
    """Write files of the folder, by their names: each whole or not at all, the system says when on the disk.

    Raises OutputError.
    """
    if isinstance(folder, Path):
        for name, data in files.items():
            write_bytes(folder / name, data, durable=False)
    elif files:
        with writing(folder):
            folder.fs.pipe({f"{folder.path}/{name}": data for name, data in files.items()})  # side by side


def write_json(path: OutPath, value: Any) -> None:
    """The value as an indented JSON file. Raises OutputError."""
    write_bytes(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def names(folder: OutPath) -> set[str]:
    """Names of the files in the folder that are not empty; none where there is no such folder.

    An empty file may be one that a power cut left without its bytes.
    """
    if isinstance(folder, Path):
        if not folder.is_dir():
            return set()
        return {entry.name for entry in os.scandir(folder) if _holds_bytes(entry)}
    try:
        found = folder.fs.ls(folder.path, detail=True)
    except FileNotFoundError:
        return set()
    return {entry["name"].rpartition("/")[2] for entry in found if entry["type"] == "file" and entry["size"]}


def _holds_bytes(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file() and entry.stat().st_size > 0
    except FileNotFoundError:  # moved away since the folder was listed
        return False


def version_of(path: OutPath) -> str | None:
    """What changes when the file does: time and size, or an object store's tag; None where there is no file."""
    try:
        if isinstance(path, Path):
            found = path.stat()
            return f"{found.st_mtime_ns}-{found.st_size}"
        info = path.fs.info(path.path)
    except FileNotFoundError:
        return None
    return f"{info.get('ETag') or info.get('LastModified')}-{info.get('size')}"


def folders(folder: OutPath) -> set[str]:
    """Names of the folders in the folder, without links and hidden ones; none where there is no such folder."""
    if isinstance(folder, Path):
        if not folder.is_dir():
            return set()
        found = {entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)}
    else:
        try:
            listed = folder.fs.ls(folder.path, detail=True)
        except FileNotFoundError:
            return set()
        found = {
            entry["name"].rstrip("/").rpartition("/")[2] for entry in listed if entry["type"] == "directory"
        }
    return {name for name in found if not name.startswith(".")}


def has_folder(folder: OutPath, name: str) -> bool:
    """Whether `folders` would name it, whatever the name is; of a folder on a disk without listing all."""
    if not isinstance(folder, Path):
        return name in folders(folder)
    if not name or name.startswith(".") or Path(name).name != name:
        return False
    try:
        return stat.S_ISDIR(os.lstat(folder / name).st_mode)
    except (OSError, ValueError):  # none of that name, or no name at all
        return False


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Held by one of those who hold the same file, in all processes, while others wait. An empty file goes at the end.

    Raises OutputError.
    """
    with _locked(path) as file:
        try:
            yield
        finally:
            if os.fstat(file.fileno()).st_size == 0:
                path.unlink()


def _locked(path: Path) -> IO[bytes]:
    """The file, made if need be, locked until it is closed."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = path.open("ab")
            fcntl.flock(file, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            file.close()  # the one before took it away, being empty


def read_whole(path: OutPath) -> bytes:
    """The file's bytes as they were at one moment, also where another process puts it anew meanwhile.

    On an object store one request fetches all of it: a file that is opened there first and read then is refused where
    it was changed between. Raises OSError, which names the file.
    """
    if isinstance(path, Path):
        try:
            return path.read_bytes()
        except OSError as error:
            # Of a read that fails Python does not say in which file.
            error.filename = error.filename or str(path)
            raise
    content: bytes = path.fs.cat_file(path.path)
    return content


def read_trouble(path: OutPath, error: OSError) -> OutputError | None:
    """What to raise where the system could not read the file; None where it is not there, or something else is.

    Trouble is no damage: nothing may be made again for it. zarr's own errors are OSErrors without a number.
    """
    if error.errno in (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return None
    return OutputError(
        f"{path}: cannot be read: {error.strerror}; see to its disk or mount, and to your rights there, and run the "
        "same command again"
    )


def append_line(path: OutPath, line: bytes) -> None:
    """Add a line to a file, which is made where there is none; it is on the disk then. Raises OutputError.

    One process at a time may add to a file (`one_at_a_time`). A line that a power cut left half is closed by the next
    one's own end, so that a reader passes over that one alone. On an object store, where nothing can be added, the file
    is put anew.
    """
    with writing(path):
        if not isinstance(path, Path):
            before = read_whole(path) if path.exists() else b""
            path.fs.pipe_file(path.path, before + line + b"\n")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = b"\n" + line
            file.write(line + b"\n")
            file.flush()
            _fsync(file.fileno())


def remove(path: OutPath) -> None:
    """Remove a file or a whole folder; nothing where there is none. Raises OutputError."""
    with writing(path):
        if not isinstance(path, Path):
            if path.fs.exists(path.path):
                path.fs.rm(path.path, recursive=True)
        elif path.is_dir() and not path.is_symlink():  # of a link, the link alone
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def new_tree(path: OutPath, files: Mapping[str, bytes], root: str) -> Iterator[None]:
    """A new folder with these files, by their relative paths, in the place of whatever lay there.

    While the block runs, the old folder is gone and the new one is not there yet; after it, the new one is there
    whole. Killed at any instant, there is the old one, none, or the new one; on an object store, where a tree
    cannot be put in place at once, it is there when its file `root` is. Raises OutputError.
    """
    with writing(path):
        if not isinstance(path, Path):
            remove(path / root)
            remove(path)
            yield
            write_many(path, {name: data for name, data in files.items() if name != root})
            write_bytes(path / root, files[root])
            return
        part, old = _beside(path), _beside(path)
        try:
            for name, data in files.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                (part / name).write_bytes(data)
            sync_tree(part)
            _check_guard(path)
        except BaseException as error:
            note_inodes(path, error)
            shutil.rmtree(part, ignore_errors=True)
            raise
        if path.exists():
            path.rename(old)
            remove(old)
        yield
        _check_guard(path)
        part.rename(path)
        _sync(path.parent)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder for the block to fill: at `path`, whole and on the disk, once the block has ended.

    What lay there is replaced then; where the block fails, it stays. Whoever has its files open keeps them. Raises
    OutputError.
    """
    with writing(path):
        part, old = _beside(path), _beside(path)
        try:
            part.mkdir(parents=True)
            yield part
            sync_tree(part)
            with suppress(FileNotFoundError):
                path.rename(old)
            part.rename(path)
        except BaseException as error:
            note_inodes(path, error)
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
        _sync(path.parent)


def new_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """A .npy on the disk to fill in place, for arrays beyond memory; its `path` lies in a folder of `new_folder`.

    Its room on the disk is taken at once: written to a disk that turns out full, mapped memory ends the process.
    Raises OSError where there is no such room.
    """
    array: NDArray[Any] = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array


def tree_exists(path: OutPath, root: str) -> bool:
    """Whether a tree that `new_tree` made is there; anything at all, of a local folder. Raises OutputError."""
    if isinstance(path, Path):
        return path.exists()
    with reading(path):
        return bool((path / root).exists())


def sync_tree(folder: OutPath) -> None:
    """Bring every file under the folder to the disk; an object store has done so with each put."""
    if isinstance(folder, Path):
        for parent, _, files in os.walk(folder):
            for name in files:
                _sync(Path(parent, name))
            _sync(Path(parent))


def sync_files(paths: list[OutPath]) -> None:
    """Bring these files and their names to the disk, those that are there."""
    local = [path for path in paths if isinstance(path, Path)]
    for path in {*local, *(path.parent for path in local)}:
        if path.exists():
            _sync(path)


def clear_leftovers(folder: OutPath) -> None:
    """Remove what killed processes left unfinished in a run folder and below it, zarr's files too.

    Nobody may be writing there, and nothing of other programs may lie there.
    """
    if not isinstance(folder, Path) or not folder.is_dir():
        return
    for path in folder.glob(f"*{PART}"):
        remove(path)
    for parent, _, files in os.walk(folder):
        for name in files:
            if name.endswith((PART, ZARR_PART)):
                remove(Path(parent, name))


def clear_leftovers_of(*paths: Path) -> None:
    """Remove what killed processes left of writing these files or folders, and nothing else beside them.

    Nobody may be writing them now.
    """
    for path in paths:
        ours = re.compile(re.escape(f".{_short_name(path)}.") + "[0-9a-f]{16}" + re.escape(PART))
        for other in path.parent.glob(f".*{PART}"):
            if ours.fullmatch(other.name):
                remove(other)


def zarr_store(path: OutPath) -> "Store":
    """The place as zarr wants it."""
    if isinstance(path, Path):
        from zarr.storage import LocalStore

        return LocalStore(path)
    from zarr.storage import FsspecStore

    return FsspecStore.from_url(str(path), storage_options=dict(path.storage_options))


def _beside(path: Path) -> Path:
    """A new place in the same folder for what is not yet whole; random, so that no other process has it."""
    return path.with_name(f".{_short_name(path)}.{secrets.token_hex(8)}{PART}")


def _short_name(path: Path) -> str:
    return path.name if len(os.fsencode(path.name)) <= NAME_BYTES else path.name[-NAME_BYTES // 5 :]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        _fsync(handle)
    finally:
        os.close(handle)


def _fsync(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that know no such thing
            raise
