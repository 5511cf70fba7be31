"""`python -m tests.registry.bringing NAME [--fill]`: bring a model as a worker does, in a process that can be killed.

`begun` is on stdout once the first bytes are there, and in the end the model's status or the error. With `--fill`,
another file takes what the disk has left as soon as it has begun.
"""

import contextlib
import sys
import threading

from bitinglip.errors import BitingLipError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.downloader import DownloadProgress, make_downloader
from bitinglip.settings import ServerSettings, load_settings
from bitinglip.store.database import Database


def main() -> None:
    """Bring it, with the settings of the environment."""
    database = Database(load_settings(ServerSettings).find_urls().database_url)
    said = threading.Event()

    def tell(progress: DownloadProgress) -> None:
        if progress.files and not said.is_set():
            said.set()
            if "--fill" in sys.argv:
                fill_disk()
            sys.stdout.write("begun\n")
            sys.stdout.flush()

    try:
        entry = make_downloader(database).bring(sys.argv[1], stop=threading.Event(), on_progress=tell)
    except BitingLipError as exc:
        left = [path.name for path in ModelCache().find_repo(sys.argv[1]).rglob("*")]
        sys.stdout.write(f"{exc.code} {left}\n")
    else:
        sys.stdout.write(f"{entry.status}\n")


def fill_disk() -> None:
    """Take what the cache's disk has left."""
    with contextlib.suppress(OSError), (ModelCache().folder / "full").open("wb", buffering=0) as file:
        while file.write(bytes(10_000)):
            continue


if __name__ == "__main__":
    main()
