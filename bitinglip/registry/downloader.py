"""A whole model: looked up, fetched, proven, registered.

    register ─► pin ─────► prove ────► room ─► small files ─► safe? ─► weights ─► link ─► describe ─► available
                commit,    what is                              │
                manifest   there already                        └── refused before its weights are fetched

Decisions: Bytes come by plain HTTP, in ranges, from other nodes first and then from the hub, whatever the hub stores
them in. Of what it keeps in Xet it serves each file by HTTP as well. Rejected: hf_xet, huggingface_hub's own way to
these. It is faster on a line of several GB/s, but takes 2.5 to 6.6 GB of memory for it, cannot be stopped, goes on in
pieces of its own rather than where it was cut, and is known to fall silent for ever (xet-core issue 850); and bytes
that it has put together would still have to be hashed. A fallback to HTTP would be needed in any case, and one way is
easier to trust than two.

What an earlier download left whole, or huggingface_hub put into the same cache, is hashed and then used. Nothing tells
a file that was proven before from one that was not, and to hash it takes a fraction of the time to fetch it.

Invariant: whoever gets a model from here gets it whole and proven, at the commit that it is pinned to. An error leaves
either what the next attempt goes on with, or nothing.
"""

import threading
from collections.abc import Callable, Sequence

from bitinglip.domain.models import ModelFile, ModelName
from bitinglip.errors import DownloadStoppedError
from bitinglip.registry.cache import ModelCache
from bitinglip.registry.hub.client import Hub
from bitinglip.registry.job import DownloadJob, Surroundings, describe_unusable
from bitinglip.registry.transfer.progress import DownloadProgress
from bitinglip.registry.transfer.throttle import find_throttle
from bitinglip.settings import ModelSettings, find_node_name, load_settings
from bitinglip.store.database import Database
from bitinglip.store.entries import ModelEntry

__all__ = ["DownloadProgress", "ModelDownloader", "make_downloader"]


def _ignore(_progress: DownloadProgress) -> None:
    """Nobody wants to know."""


class ModelDownloader:
    """Brings models to one node; any number of threads may ask it at once.

    Args:
        database: Where they are registered.
        node: This node's name.
        cache: Where its files are.
        hub: Where they come from, if no other node has them.
        settings: How they are fetched.
    """

    def __init__(self, database: Database, *, node: str, cache: ModelCache, hub: Hub, settings: ModelSettings) -> None:
        throttle = find_throttle(settings.download_bytes_per_second)
        self._surroundings = Surroundings(database, node, cache, hub, settings, throttle)

    def bring(
        self,
        name: str,
        *,
        stop: threading.Event,
        on_progress: Callable[[DownloadProgress], None] = _ignore,
        keep_parts: Callable[[], bool] = lambda: False,
    ) -> ModelEntry:
        """The registered model, once this node has it, whole and proven; at once if it has.

        Args:
            name: As tasks name it: `organisation/name`, or the same with `@revision`.
            stop: Ends it from another thread, within a second.
            on_progress: Told how far it is, every quarter of a second at most.
            keep_parts: Asked when it was told to stop: whether what has come of the files that are not whole stays, as
                for an attempt that another worker will go on with.

        Raises:
            BitingLipError: With its cause, recorded with the model; `retryable` says whether trying again may help.
        """
        return self._run(name, lambda job: job.bring(), stop=stop, on_progress=on_progress, keep_parts=keep_parts)

    def repair(
        self,
        name: str,
        files: Sequence[ModelFile],
        *,
        stop: threading.Event,
        on_progress: Callable[[DownloadProgress], None] = _ignore,
    ) -> ModelEntry:
        """Fetch just these files of a registered model anew; the others count as proven. Returns it, available.

        Args:
            name: As tasks name it.
            files: Of its manifest; what is there of them is deleted.
            stop: Ends it from another thread, within a second.
            on_progress: Told how far it is, every quarter of a second at most.

        Raises:
            ModelNotFoundError: If it is not registered, or was never fetched.
            BitingLipError: As from `bring`; the copy stays damaged.
        """
        return self._run(
            name, lambda job: job.repair(files), stop=stop, on_progress=on_progress, keep_parts=lambda: False
        )

    def _run(
        self,
        name: str,
        action: Callable[[DownloadJob], ModelEntry],
        *,
        stop: threading.Event,
        on_progress: Callable[[DownloadProgress], None],
        keep_parts: Callable[[], bool],
    ) -> ModelEntry:
        model = ModelName.parse(name)
        on_progress(DownloadProgress("waiting"))
        at = self._surroundings
        job = DownloadJob(at, model, stop=stop, on_progress=on_progress, keep_parts=keep_parts)
        try:
            with at.cache.lock_to_write(model.repo, stop) as is_ours:
                if not is_ours:
                    raise DownloadStoppedError(name)
                return action(job)
        except OSError as exc:
            raise describe_unusable(at.cache, exc) from exc


def make_downloader(database: Database) -> ModelDownloader:
    """A downloader to this node's cache, as the settings say.

    Raises:
        ConfigurationError: If a setting is wrong.
    """
    return ModelDownloader(
        database, node=find_node_name(), cache=ModelCache(), hub=Hub(), settings=load_settings(ModelSettings)
    )
