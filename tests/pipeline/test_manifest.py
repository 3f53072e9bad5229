import csv
import json
from pathlib import Path

import pytest

from wsi_pipeline.jobs.events import EVENTS, EventLog, EventReader
from wsi_pipeline.pipeline import manifest as module
from wsi_pipeline.pipeline.manifest import Manifest, ManifestRow


def row(
    name: str, status: str = "done", finished: str = "2026-01-01T12:00:00", **values: object
) -> ManifestRow:
    return ManifestRow(name, f"/slides/{name}.svs", status, finished=finished, **values)  # type: ignore[arg-type]


def keys(*names: str) -> list[tuple[str, str]]:
    return [(name, f"/slides/{name}.svs") for name in names]


def read(out: Path) -> list[dict[str, str]]:
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def open_manifest(out: Path, *names: str, started: str = "2026-01-01T00:00:00") -> Manifest:
    return Manifest(out, EventLog(out), started, keys(*names))


def test_rows_stand_in_the_order_of_the_list_after_those_of_earlier_runs(tmp_path: Path) -> None:
    early = open_manifest(tmp_path, "z")
    early.record(row("z"))
    early.write()
    late = open_manifest(tmp_path, "b", "a", "c")
    for name in ("c", "b", "a"):
        late.record(row(name))
    late.write()
    assert [r["slide"] for r in read(tmp_path)] == ["z", "b", "a", "c"]


def test_a_record_survives_a_kill_before_the_file_was_written(tmp_path: Path) -> None:
    open_manifest(tmp_path, "a", "b").record(row("a", patches=0))
    assert not (tmp_path / "manifest.csv").exists()
    following = open_manifest(tmp_path, "b")
    following.write()
    assert [(r["slide"], r["status"], r["patches"]) for r in read(tmp_path)] == [("a", "done", "0")]


def test_a_line_that_a_kill_cut_short_is_passed_over(tmp_path: Path) -> None:
    first = open_manifest(tmp_path, "a", "b")
    first.record(row("a"))
    first.record(row("b"))
    (file,) = (tmp_path / EVENTS).iterdir()
    whole = file.read_bytes()
    for cut in range(len(whole) - len(whole.splitlines()[-1]), len(whole)):
        file.write_bytes(whole[:cut])
        assert [e["slide"] for e in EventReader(tmp_path).new() if e["event"] == "slide"] == ["a"]


@pytest.mark.parametrize(
    "changes", [{"status": "\x1b[31m"}, {"status": "lost"}, {"reason": {"a": 1}}, {"patches": [1]}]
)
def test_an_event_with_what_no_row_holds_is_set_aside(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, object]
) -> None:
    event = {"event": "slide", "slide": "x", "path": "/x", "status": "done", "finished": "2026-01-01"}
    (tmp_path / EVENTS).mkdir(parents=True)
    (tmp_path / EVENTS / "0.jsonl").write_text(json.dumps(event | changes) + "\n")
    open_manifest(tmp_path, "a").write()
    assert read(tmp_path) == []
    assert "says nothing of a slide is set aside" in caplog.text


def test_what_steers_a_terminal_is_written_out(tmp_path: Path) -> None:
    event = {"event": "slide", "slide": "x", "path": "/x", "status": "failed", "finished": "2026-01-01"}
    (tmp_path / EVENTS).mkdir(parents=True)
    (tmp_path / EVENTS / "0.jsonl").write_text(json.dumps(event | {"reason": "\x1b[2J\na"}) + "\n")
    open_manifest(tmp_path, "a").write()
    assert [r["reason"] for r in read(tmp_path)] == ["\\x1b[2J\\x0aa"]


def test_events_that_cannot_be_read_just_now_come_later_and_stop_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = open_manifest(tmp_path, "a")
    other.record(row("a"))
    (file,) = (tmp_path / EVENTS).iterdir()
    file.rename(tmp_path / "kept")
    file.symlink_to(file)  # too many links: an error of the system, as EIO is
    manifest = open_manifest(tmp_path, "b")
    manifest.record(row("b"))
    manifest.write()
    assert [r["slide"] for r in read(tmp_path)] == ["b"]
    warned = [r.getMessage() for r in caplog.records if "cannot be read" in r.getMessage()]
    assert len(warned) == 1
    assert file.name in warned[0]
    (tmp_path / "kept").replace(file)
    manifest.write()
    assert [r["slide"] for r in read(tmp_path)] == ["a", "b"]


def test_processes_beside_each_other_lose_no_row_whoever_writes_last(tmp_path: Path) -> None:
    one, other = open_manifest(tmp_path, "a", "b"), open_manifest(tmp_path, "a", "b")
    one.record(row("a"))
    other.record(row("b", "failed", reason="bad"))
    one.write()
    assert [(r["slide"], r["status"]) for r in read(tmp_path)] == [("a", "done"), ("b", "failed")]
    other.write()
    assert [(r["slide"], r["status"]) for r in read(tmp_path)] == [("a", "done"), ("b", "failed")]


@pytest.mark.parametrize("skipper_first", [True, False])
def test_a_slide_done_by_one_of_two_runs_is_done_though_the_other_skipped_it(
    tmp_path: Path, skipper_first: bool
) -> None:
    doer, skipper = open_manifest(tmp_path, "a"), open_manifest(tmp_path, "a")
    records = [
        lambda: skipper.record(row("a", "skipped", "2026-01-01T13:00:00")),
        lambda: doer.record(row("a", "done", "2026-01-01T12:00:00")),
    ]
    for record in records if skipper_first else reversed(records):
        record()
    skipper.write()
    assert [r["status"] for r in read(tmp_path)] == ["done"]


def test_a_later_run_that_skips_a_slide_says_so(tmp_path: Path) -> None:
    open_manifest(tmp_path, "a").record(row("a"))
    later = open_manifest(tmp_path, "a", started="2026-01-02T00:00:00")
    later.record(row("a", "skipped", "2026-01-02T00:00:01"))
    later.write()
    assert [r["status"] for r in read(tmp_path)] == ["skipped"]


def test_the_manifest_of_an_out_without_events_is_kept(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(
        "slide,path,status,reason,patches,idc_mm2,seconds,version\na,/slides/a.svs,done,,7,,1.5,0.0.9\n"
    )
    following = open_manifest(tmp_path, "b")
    following.record(row("b"))
    following.write()
    assert [(r["slide"], r["patches"], r["version"]) for r in read(tmp_path)] == [
        ("a", "7", "0.0.9"),
        ("b", "", ""),
    ]


def test_recording_does_not_write_the_file_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    monkeypatch.setattr(module.Manifest, "write", lambda self: written.append(1))
    many = open_manifest(tmp_path, *map(str, range(200)))
    for i in range(200):
        many.record(row(str(i)))
    assert not written
    (file,) = (tmp_path / EVENTS).iterdir()
    assert [json.loads(line)["slide"] for line in file.read_text().splitlines()] == [
        str(i) for i in range(200)
    ]


@pytest.mark.parametrize("minutes_off", [-10, 10])
@pytest.mark.parametrize("last", ["done", "failed"])
@pytest.mark.parametrize("last_file_first", [True, False])
def test_the_last_attempt_counts_whatever_the_clock_of_its_machine_says(
    tmp_path: Path, minutes_off: int, last: str, last_file_first: bool
) -> None:
    first = open_manifest(tmp_path, "a")
    first.record(row("a", "failed" if last == "done" else "done", "2026-01-01T12:10:00"), first.started("a"))
    second = open_manifest(tmp_path, "a")
    second.record(row("a", last, f"2026-01-01T12:{10 + minutes_off:02}:01"), second.started("a"))
    if last_file_first:  # a clock that is off names the file of events, too
        newest = max((tmp_path / EVENTS).iterdir())
        newest.rename(newest.with_name("0.jsonl"))
    following = open_manifest(tmp_path, "b")
    following.write()
    assert [r["status"] for r in read(tmp_path)] == [last]


def test_an_attempt_recorded_late_does_not_hide_the_one_that_began_after_it(tmp_path: Path) -> None:
    slept, quick = open_manifest(tmp_path, "a"), open_manifest(tmp_path, "a")
    began = slept.started("a")
    quick.record(row("a", "done", "2026-01-01T12:00:00"), quick.started("a"))
    slept.record(row("a", "failed", "2026-01-01T13:00:00"), began)
    quick.write()
    assert [r["status"] for r in read(tmp_path)] == ["done"]


def test_a_refused_run_leaves_the_row_of_a_result_and_says_that_its_own_does_not_stand(
    tmp_path: Path,
) -> None:
    open_manifest(tmp_path, "a").record(row("a", patches=7))
    later = open_manifest(tmp_path, "a", "b")
    assert not later.record(row("a", "failed", reason="another model"), later.started("a"), refused=True)
    assert later.record(row("b", "failed", reason="no scale"), later.started("b"), refused=True)
    later.write()
    assert [(r["slide"], r["status"], r["patches"]) for r in read(tmp_path)] == [
        ("a", "done", "7"),
        ("b", "failed", ""),
    ]
