"""Several files at once: threads that fetch, and one that watches over them.

Invariant: when it returns or raises, none of its threads writes any more. Whoever holds the model's write lock may let
go of it then.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence

from bitinglip.domain.models import ModelFile
from bitinglip.errors import DownloadStoppedError

WATCH_SECONDS = 0.1


class Transfer:
    """Fetches a model's files, each by the same function.

    Args:
        fetch: Returns when a file is there; ends with an error soon after `halt` has been set.
        threads: How many files at once.
        model: Its name, for errors.
        stop: Ends it from another thread.
        halt: Set by this when the fetching is to end, for whatever reason.
        watch: Called every now and then while it goes on, in the thread that runs it.
    """

    def __init__(
        self,
        fetch: Callable[[ModelFile], None],
        *,
        threads: int,
        model: str,
        stop: threading.Event,
        halt: threading.Event,
        watch: Callable[[], None],
    ) -> None:
        self._fetch = fetch
        self._threads = threads
        self._model = model
        self._stop = stop
        self._halt = halt
        self._watch = watch
        self._lock = threading.Lock()
        self._running = 0
        self._ended = threading.Event()
        self._errors: list[BaseException] = []

    def run(self, files: Sequence[ModelFile]) -> None:
        """Return when every file is there; the largest are begun first.

        Raises:
            DownloadStoppedError: If told to stop.
            BitingLipError: The first error of any of them; the others are ended.
            OSError: The same.
        """
        waiting = deque(sorted(files, key=lambda file: -file.size))
        self._running = min(self._threads, len(waiting))
        threads = [
            threading.Thread(target=self._work, args=(waiting,), name=f"fetch-{self._model}-{number}", daemon=True)
            for number in range(self._running)
        ]
        try:
            for thread in threads:
                thread.start()
            while threads and not self._ended.wait(WATCH_SECONDS):
                if self._stop.is_set():
                    raise DownloadStoppedError(self._model)
                self._watch()
        except BaseException:
            self._halt.set()
            raise
        finally:
            for thread in threads:
                thread.join()
        if self._errors:
            raise self._errors[0]

    def _work(self, waiting: deque[ModelFile]) -> None:
        try:
            while (file := self._take(waiting)) is not None:
                self._fetch(file)
        except BaseException as exc:
            self._errors.append(exc)
            self._halt.set()
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._ended.set()

    def _take(self, waiting: deque[ModelFile]) -> ModelFile | None:
        with self._lock:
            return waiting.popleft() if waiting and not self._halt.is_set() else None
