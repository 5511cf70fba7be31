"""The Celery application: how doorbells are named and where the broker is. It knows no task's meaning.

`celery -A bitinglip worker` finds `app` here. Its configuration is read from `celeryconfig.py`: the file that
`BITINGLIP_CELERY_CONFIG` names, else the checkout's, else the default inside the installed package. The broker's URL is
never in that file; it comes from the settings.
"""

import os
import runpy
from pathlib import Path

from celery import Celery

from bitinglip.errors import ConfigurationError
from bitinglip.settings import ServerSettings, find_operator_file, load_settings

DOORBELL_VERSION = 1
"""First argument of every doorbell, so that old and new workers can tell."""

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


def make_app() -> Celery:
    """The application, configured when it is first used: importing it needs no running system."""
    app = Celery("bitinglip", include=["bitinglip.tasks"], set_as_current=False)

    @app.on_configure.connect(weak=False)
    def configure(**_: object) -> None:
        values = runpy.run_path(str(find_config()))
        options = {name: value for name, value in values.items() if name.islower() and not name.startswith("_")}
        app.conf.update(options)
        app.conf.broker_url = load_settings(ServerSettings).find_urls().redis_url
        app.conf.result_backend = "bitinglip.tasks.RecordBackend"

    return app


app = make_app()
