"""`python -m bitinglip.dispatcher`: one dispatcher, until SIGTERM or SIGINT."""

import gc
import signal
import sys

from bitinglip.celery_app import app
from bitinglip.dispatcher.doorbells import DoorbellRinger
from bitinglip.dispatcher.loop import Dispatcher
from bitinglip.errors import BitingLipError
from bitinglip.settings import DispatchSettings, ServerSettings, WorkerSettings, load_settings
from bitinglip.store.database import Database
from bitinglip.streams.reader import connect
from bitinglip.streams.writer import EventWriter
from bitinglip.telemetry import configure_logging, get_logger


def main() -> int:
    """Run until told to stop; returns the exit status."""
    try:
        configure_logging()
        urls = load_settings(ServerSettings).find_urls()
        database = Database(urls.database_url, name="bitinglip-dispatcher")
        database.check_schema()
        settings = load_settings(WorkerSettings)
        writer = EventWriter(connect(urls.redis_url), keep_seconds=settings.stream_seconds)
        dispatcher = Dispatcher(
            database,
            DoorbellRinger(app),
            writer.announce_changes,
            lease_seconds=settings.lease_seconds,
            swap_seconds=load_settings(DispatchSettings).swap_seconds,
        )
    except BitingLipError as exc:
        sys.stderr.write(f"{exc}\n")
        return exc.exit_code
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: dispatcher.stop())
    get_logger().info("dispatcher_started", database=database.address)
    # What was imported stays: a full collection would look at all of it, in the middle of a round.
    gc.collect()
    gc.freeze()
    dispatcher.run()
    writer.close()
    database.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
