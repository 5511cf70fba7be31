"""schedule.toml: every problem at once, each named by its key."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from bitinglip.beat.schedule import Chore, find_schedule_file, read_schedule
from bitinglip.errors import ConfigurationError
from tests.cli.conftest import Run
from tests.conftest import REPOSITORY, forget_settings

DUE = datetime(2026, 1, 31, 8, tzinfo=UTC)
UPLOAD = f"uploads/{0:032x}.png"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "schedule.toml"


def test_the_shipped_schedule_reports_and_purges() -> None:
    assert find_schedule_file() == REPOSITORY / "beat" / "schedule.toml"
    schedule = read_schedule(find_schedule_file())
    assert {name: entry.chore for name, entry in schedule.items()} == {
        "report_day": Chore.REPORT_DAY,
        "sweep_artifacts": Chore.SWEEP_ARTIFACTS,
        "purge_finished": Chore.PURGE_FINISHED,
    }


def test_the_example_in_the_shipped_schedule_is_right(file: Path) -> None:
    lines = (REPOSITORY / "beat" / "schedule.toml").read_text().splitlines()
    begin = lines.index("# [recurring.good_morning]")
    file.write_text("\n".join(line.removeprefix("# ") for line in lines[begin:]))

    entry = read_schedule(file)["good_morning"]
    request = entry.make_request("good_morning", DUE)

    assert (request.agent_id, request.model, request.priority, request.type) == ("my-bot", "demo", "high", "text")
    assert request.idempotency_key == "recurring:good_morning:2026-01-31T08:00:00+00:00"
    assert entry.times.find_next(DUE) == datetime(2026, 2, 1, 8, tzinfo=UTC)


def test_two_due_times_are_two_tasks(file: Path) -> None:
    file.write_text('[recurring.a]\nevery = 5\ntask = "echo"\ntext = "x"\n')
    entry = read_schedule(file)["a"]

    assert entry.make_request("a", DUE).id != entry.make_request("a", DUE).id


def test_an_empty_schedule_is_right(file: Path) -> None:
    file.write_text("")

    assert read_schedule(file) == {}


def test_every_problem_is_named(file: Path) -> None:
    file.write_text(
        """
[recurring.a]
cron = "99 9 * * *"
timezone = "Europe/Atlantis"
chore = "sweep"

[recurring.b]
every = 0
task = "text"
model = "demo"
prompt = "x"

[recurring.c]
every = 5
task = "text"
prompt = "x"

[recurring.d]
cron = "0 9 * * *"
task = "text"
model = "demo"
prompt = "x"
temperature = 3

[recurring.e]
every = 5
cron = "0 9 * * *"
task = "echo"
chore = "report_day"

[recurring.f]
every = 5
chore = "report_day"
day = "today"

[recurring.g]
every = 5
task = "echo"
agent = ""

[recurring.h]
every = 5
timezone = "UTC"
task = "sing"

[recurring.i]
every = 5
task = "sing"

[recurring.j]
every = 5
task = "echo"
not_before = "2026-01-31T08:00:00+00:00"

[recurring.k]
every = 5
task = "image"
model = "demo-image"
prompt = "the same again"
image = "UPLOAD"

[recuring.l]
every = 5
""".replace("UPLOAD", UPLOAD)
    )
    with pytest.raises(ConfigurationError) as caught:
        read_schedule(file)

    problems = [problem.removeprefix(f"{file}: ") for problem in caught.value.problems]
    assert [problem.split("; choose")[0] for problem in problems] == [
        "recurring.a.cron is '99 9 * * *': invalid end range: 99 > 59",
        "recurring.a.timezone is 'Europe/Atlantis': no such time zone; write one such as Europe/Berlin",
        "recurring.a.chore is 'sweep': input should be 'purge_finished', 'report_day' or 'sweep_artifacts'",
        "recurring.b.every is 0: input should be greater than or equal to 1",
        "recurring.c: model is None: a task of type text names a model",
        "recurring.d: temperature is 3: input should be less than or equal to 2",
        "recurring.e: give either cron or every; give either task or chore",
        "recurring.f: day: a chore takes nothing more",
        "recurring.g: agent is '': too short; at least 1 long",
        "recurring.h: timezone is for cron; every counts seconds",
        problems[10],
        "recurring.j: not_before is '2026-01-31T08:00:00+00:00': no such field; remove it",
        f"recurring.k: image is '{UPLOAD}': files go in time; a task that recurs takes none",
        "recuring is unknown; the file holds tables such as [recurring.NAME]",
    ]
    assert problems[10].startswith("recurring.i: task is 'sing': choose one of ")


@pytest.mark.parametrize(
    ("text", "complaint"), [("[recurring", "it must be TOML"), ("recurring = 3", "recurring is 3")]
)
def test_a_file_that_is_no_schedule_is_refused(file: Path, text: str, complaint: str) -> None:
    file.write_text(text)

    with pytest.raises(ConfigurationError, match=complaint):
        read_schedule(file)


def test_config_check_reads_the_schedule_that_is_named(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file.write_text('[recurring.a]\nevery = 5\nchore = "sweep"\n')
    monkeypatch.setenv("BITINGLIP_SCHEDULE_FILE", str(file))
    assert "recurring.a.chore is 'sweep'" in run("config", "check").stdout
    monkeypatch.setenv("BITINGLIP_SCHEDULE_FILE", str(tmp_path / "none.toml"))
    assert "BITINGLIP_SCHEDULE_FILE is " in run("config", "check").stdout
    monkeypatch.delenv("BITINGLIP_SCHEDULE_FILE")
    forget_settings()
