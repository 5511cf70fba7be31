"""Flower, Celery's web page, as one more child: loopback only, behind a generated password.

The password and the broker's URL go in through the environment, which only this account and root can read; arguments
can be read by everyone. Flower runs in its own process: its imports stay out of ours. Workers must send events (`-E`).
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bitinglip.embedded.child import Child, Program
from bitinglip.embedded.ports import LOOPBACK, accepts_connections

USER = "bitinglip"
READY_SECONDS = 60

COLUMNS = "uuid,state,args,received,runtime,worker"
"""Of the list of tasks; a doorbell's `args` show agent, priority, model and id."""


@dataclass(frozen=True, kw_only=True)
class Flower:
    """One Flower.

    Attributes:
        log_folder: Takes `flower.log`.
        password: Of the user `bitinglip`.
        redis_url: The broker.
        app: Celery's name for the application, as in `celery -A`.
        env: Added to our environment.
    """

    log_folder: Path
    password: str
    redis_url: str
    app: str = "bitinglip"
    env: Mapping[str, str] | None = None

    def make_url(self, port: int) -> str:
        """Where people find it; they are asked for user and password."""
        return f"http://{LOOPBACK}:{port}/"

    def make_program(self, port: int) -> Program:
        """Flower on that port."""
        options = {
            "FLOWER_ADDRESS": LOOPBACK,
            "FLOWER_PORT": str(port),
            "FLOWER_TASKS_COLUMNS": COLUMNS,
            "FLOWER_BASIC_AUTH": f"{USER}:{self.password}",
            "CELERY_BROKER_URL": self.redis_url,
        }
        return Program(
            name="flower",
            argv=(sys.executable, "-m", "celery", "--app", self.app, "flower"),
            log_file=self.log_folder / "flower.log",
            env={**os.environ, **(self.env or {}), **options},
            # It holds nothing worth waiting for, and hears no signal while it starts.
            stop_seconds=3,
            wait_ready=lambda child: _wait_ready(child, port),
        )


def _wait_ready(child: Child, port: int) -> None:
    child.wait_until(lambda: accepts_connections(port), within_seconds=READY_SECONDS)
