"""A call that stands still between its steps: it has a thread of its own, and takes turns with the engine's.

Invariant: exactly one of the two threads runs at any time, so that whatever the call uses needs no lock. The thread
ends with the call, however that ends.

Inference mode is a thread's own: it is entered here.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class CallStoppedError(BaseException):
    """Raised where the call stands, to end it. No `Exception`: a pipeline that catches those must not go on."""


class _Paused:
    """The call's word that it stands still."""


class SteppedCall(Generic[T]):
    """One call, advanced from pause to pause.

    Args:
        call: What to do. Given `pause`, which returns when the next step is due.
    """

    def __init__(self, call: Callable[[Callable[[], None]], T]) -> None:
        self._call = call
        self._thread: threading.Thread | None = None
        self._orders: SimpleQueue[bool] = SimpleQueue()
        self._reports: SimpleQueue[_Paused | BaseException | tuple[T]] = SimpleQueue()

    def advance(self) -> tuple[T] | None:
        """Let the call run to its next pause, or to its end; return what it gave, in a tuple, or None if it goes on.

        Raises:
            BaseException: Whatever the call raised; it has ended then.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)
            self._thread.start()
        else:
            self._orders.put(True)
        return self._await_report()

    def stop(self) -> None:
        """End the call where it stands; harmless if it has ended or not begun."""
        while self._thread is not None and self._thread.is_alive():
            self._orders.put(False)
            # It has ended then, and nobody asks how.
            with suppress(CallStoppedError, Exception):
                self._await_report()

    def _await_report(self) -> tuple[T] | None:
        report = self._reports.get()
        if isinstance(report, _Paused):
            return None
        if self._thread is not None:
            self._thread.join()
        if isinstance(report, BaseException):
            # Its frames would keep what ran out of memory in memory.
            raise report.with_traceback(None)
        return report

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                report: BaseException | tuple[T] = (self._call(self._pause),)
        except BaseException as exc:
            report = exc
        self._reports.put(report)

    def _pause(self) -> None:
        self._reports.put(_Paused())
        if not self._orders.get():
            raise CallStoppedError
