import pytest

from wsi_pipeline.cli import progress
from wsi_pipeline.cli.progress import BatchProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress goes by: change its only element."""
    moment = [1000.0]
    monkeypatch.setattr("wsi_pipeline.cli.progress.time.monotonic", lambda: moment[0])
    return moment


def test_the_time_left_follows_from_what_was_worked_on_not_from_what_was_skipped(clock: list[float]) -> None:
    batch = BatchProgress(10)
    assert batch.seconds_left is None
    for i in range(4):
        batch.ended(f"done before {i}", "", False, False)
    assert batch.seconds_left is None
    batch.started("a")
    clock[0] += 60
    batch.ended("a", "", False, True)
    batch.started("b")
    clock[0] += 30
    batch.progressed("b", 50, 100)
    assert batch.seconds_left == pytest.approx(60 * 4.5)


def test_a_log_has_a_line_now_and_then_with_rates_within_slides(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    batch = BatchProgress(3)
    batch.started("a")
    for second in range(0, 100):
        batch.progressed("a", 500 + 10 * second, 2000)
        clock[0] += 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == int(99 // progress.LOG_EVERY_S)
    assert lines[0] == "0 of 3 slides; working on a 40%, 10 patches/s; about 3 min left"
    batch.left("a")
    batch.ended("a", "a: failed: it burnt", True, False)
    assert capsys.readouterr().out == "[1/3] a: failed: it burnt\n"
