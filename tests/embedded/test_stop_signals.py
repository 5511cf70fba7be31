"""Ctrl-C stops the children in order; a second one stops them fast."""

import os
import signal
import time
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_one_signal_stops_everything_in_order(
    number: signal.Signals, start_parent, data_dir: Path, eventually, is_gone
) -> None:
    parent = start_parent(str(data_dir))
    # To the whole group, as a terminal does: the children must not hear it.
    os.killpg(parent.process.pid, number)
    errors = parent.finish()
    assert errors == f"{number!r}: stopping postgres valkey first second\n"
    eventually(lambda: all(is_gone(pid) for pid in parent.pids.values()))
    assert not (data_dir / "running.json").exists()
    assert (data_dir / "logs" / "guard.log").read_text() == ""
    assert "database system is shut down" in (data_dir / "logs" / "postgres.log").read_text()


def test_a_closed_terminal_is_no_reason_to_stop_under_nohup(start_parent, data_dir: Path, is_gone) -> None:
    parent = start_parent(str(data_dir), prefix=["nohup"])
    parent.process.send_signal(signal.SIGHUP)
    assert "SIGTERM" in parent.finish(signal.SIGTERM)


def test_a_second_signal_stops_fast(start_parent, data_dir: Path, eventually, is_gone) -> None:
    parent = start_parent(str(data_dir), "deaf")
    begun = time.monotonic()
    parent.process.send_signal(signal.SIGINT)
    assert parent.process.stderr is not None
    assert "stopping" in parent.process.stderr.readline()
    parent.finish(signal.SIGINT)
    assert time.monotonic() - begun < 9, "two deaf children have 10 s each"
    eventually(lambda: all(is_gone(pid) for pid in parent.pids.values()))
