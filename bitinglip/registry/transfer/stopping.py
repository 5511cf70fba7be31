"""Calls that end within a moment once told to stop, whatever the network does.

A name that is looked up, a connection that is made, a reply that does not begin: none of them can be interrupted. So
they are made in a thread of their own, and left to it when they are not wanted any more.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import TypeVar

from bitinglip.errors import DownloadStoppedError

STOP_POLL_SECONDS = 0.1

T = TypeVar("T")


def call_unless_stopped(
    call: Callable[[], T], *, stop: threading.Event | None, model: str, discard: Callable[[T], object] | None = None
) -> T:
    """What the call returns.

    Args:
        call: Must end by itself some time: it is not interrupted, only left.
        stop: None: nobody will stop it, and it needs no thread.
        model: What is fetched by it.
        discard: Lets go of what the call returns once nobody waits for it.

    Raises:
        DownloadStoppedError: If told to stop first.
    """
    if stop is None:
        return call()
    future: Future[T] = Future()
    threading.Thread(target=_run, args=(call, future), name=f"fetch-{model}", daemon=True).start()
    while not stop.is_set():
        if wait([future], timeout=STOP_POLL_SECONDS).done:
            return future.result()
    future.add_done_callback(lambda done: _discard(done, discard))
    raise DownloadStoppedError(model)


def _run(call: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(call())
    except BaseException as exc:
        # Raised again where it is waited for.
        future.set_exception(exc)


def _discard(future: Future[T], discard: Callable[[T], object] | None) -> None:
    if discard is not None and future.exception() is None:
        discard(future.result())
