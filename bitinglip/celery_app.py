"""The Celery application: how doorbells are named and where the broker is. It knows no task's meaning.

`celery -A bitinglip worker` finds `app` here. Its configuration is read from `celeryconfig.py`: the file that
`BITINGLIP_CELERY_CONFIG` names, else the checkout's, else the default inside the installed package. The broker's URL is
never in that file; it comes from the settings.
"""

import os
import runpy
from pathlib import Path
from typing import Any

import click
from celery import Celery
from celery.loaders.app import AppLoader

from bitinglip.errors import BitingLipError, ConfigurationError
from bitinglip.settings import ServerSettings, find_operator_file, load_settings

DOORBELL_VERSION = 1
"""First argument of every doorbell, so that old and new workers can tell."""

CHORE_QUEUE = "bitinglip.chores"
"""The Celery queue of whatever is no generation: every worker consumes it besides its own."""

CONFIG_VARIABLE = "BITINGLIP_CELERY_CONFIG"


def task_name(kind: str) -> str:
    """The Celery task of a kind."""
    return f"bitinglip.{kind}"


def queue_name(worker_name: str) -> str:
    """The Celery queue that one worker consumes; dots, because kombu reads a colon as its priority separator."""
    return f"bitinglip.worker.{worker_name}"


def find_config() -> Path:
    """The celeryconfig.py in force.

    Raises:
        ConfigurationError: If the environment names a file that is not there.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    path = Path(named).expanduser() if named else find_operator_file("celeryconfig.py")
    if not path.is_file():
        raise ConfigurationError(f"{CONFIG_VARIABLE} is {str(path)!r}: no such file; name a celeryconfig.py")
    return path


class Loader(AppLoader):
    """Reads the configuration when the application is first used: importing it needs no running system."""

    def read_configuration(self, env: str = "") -> dict[str, Any]:
        """Celery's settings, with the broker's URL.

        Raises:
            ConfigurationError: If celeryconfig.py cannot be run.
            SystemNotRunningError: If no URLs are configured and no embedded system runs.
            ClickException: The same, under the celery command.
        """
        try:
            return _read_configuration()
        except BitingLipError as exc:
            context = click.get_current_context(silent=True)
            if context is None or context.find_root().command.name != "celery":
                raise
            # The celery command shows these, and any other error with its traceback.
            shown = type("ShownError", (click.ClickException,), {"exit_code": exc.exit_code})
            raise shown(str(exc)) from exc


def _read_configuration() -> dict[str, Any]:
    path = find_config()
    try:
        values = runpy.run_path(str(path))
    except Exception as exc:
        raise ConfigurationError(f"{path} cannot be run: {type(exc).__name__}: {exc}; mend it") from exc
    options = {name: value for name, value in values.items() if name.islower() and not name.startswith("_")}
    urls = load_settings(ServerSettings).find_urls()
    return {
        **options,
        "broker_url": urls.redis_url,
        "result_backend": "bitinglip.tasks.RecordBackend",
        "task_default_queue": CHORE_QUEUE,
    }


app = Celery("bitinglip", include=["bitinglip.tasks", "bitinglip.chores"], loader=Loader, set_as_current=False)
