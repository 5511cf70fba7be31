"""The rate that people are shown of a download is what comes now, whatever they have missed."""

from types import SimpleNamespace

import pytest

from bitinglip.cli import progress
from bitinglip.cli.progress import ProgressLine


def show(line: ProgressLine, clock: SimpleNamespace, *told: tuple[float, int]) -> None:
    """Tell of so many bytes at these times."""
    for clock.now, done in told:
        line.show({"stage": "downloading", "done_bytes": done, "total_bytes": 10_000_000_000})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that the test sets; every line is due."""
    made = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: made.now))
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    return made


def test_what_is_read_all_at_once_says_nothing_of_the_rate(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    show(ProgressLine(), clock, (0.0, 0), (0.01, 1_000_000_000), (0.02, 3_000_000_000), (1.0, 3_000_500_000))

    assert capsys.readouterr().err.splitlines() == [
        "downloading: 0% of 10.00 GB",
        "downloading: 10% of 10.00 GB",
        "downloading: 30% of 10.00 GB",
        "downloading: 30% of 10.00 GB, 0.5 MB/s",
    ]


def test_the_rate_is_that_of_the_last_seconds(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    fast = [(float(second), second * 100_000_000) for second in range(10)]
    slow = [(10.0 + second, 900_000_000 + second * 1_000_000) for second in range(10)]
    line = ProgressLine()

    show(line, clock, *fast)
    assert capsys.readouterr().err.splitlines()[-1] == "downloading: 9% of 10.00 GB, 100.0 MB/s"
    show(line, clock, *slow)
    assert capsys.readouterr().err.splitlines()[-1] == "downloading: 9% of 10.00 GB, 1.0 MB/s"


def test_nothing_is_divided_by_a_size_that_is_not_known_yet(capsys: pytest.CaptureFixture[str]) -> None:
    ProgressLine().show({"stage": "waiting", "done_bytes": 0, "total_bytes": 0})

    assert capsys.readouterr().err == "waiting\n"
