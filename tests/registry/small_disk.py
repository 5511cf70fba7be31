"""`python -m tests.registry.small_disk FOLDER`: fill a small disk with models, then ask for room on it.

A line of the models that are left, and a line of what is said when even all of them would not be enough.
"""

import os
import sys
from pathlib import Path

from bitinglip.errors import DiskFullError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.room import make_room
from bitinglip.settings import ModelSettings, ServerSettings, load_settings
from bitinglip.store.copies import list_least_used
from bitinglip.store.database import Database
from tests.registry.kept import NODE, keep


def main() -> None:
    """Two models of 1.5 MB each on 4 MB: a third one makes the first leave."""
    cache = ModelCache(Path(sys.argv[1]) / "hub")
    database = Database(load_settings(ServerSettings).find_urls().database_url)
    settings = ModelSettings(model_spare_bytes=200_000)
    for name in ("org/a", "org/b"):
        keep(database, cache, name, 1_500_000)
    make_room(database, node=NODE, cache=cache, model="org/new", needed_bytes=1_500_000, settings=settings)
    keep(database, cache, "org/new", {"model.safetensors": os.urandom(1_500_000)})
    with database.transaction() as connection:
        left = sorted(copy.model for copy in list_least_used(connection, NODE))
    sys.stdout.write(" ".join(left) + "\n")
    try:
        make_room(database, node=NODE, cache=cache, model="org/huge", needed_bytes=10_000_000, settings=settings)
    except DiskFullError as exc:
        sys.stdout.write(f"{exc}\n")


if __name__ == "__main__":
    main()
