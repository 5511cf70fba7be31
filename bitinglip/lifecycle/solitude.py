"""Suspects run alone: while one does, nothing else is in its engine.

Whoever waits to be alone goes before whoever comes later, so a busy engine cannot put a suspect off for ever.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Solitude:
    """A door for many, or for one alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False
        self._waiting_alone = 0

    @contextmanager
    def enter(self, *, alone: bool, gives_up: Callable[[], bool]) -> Iterator[bool]:
        """Wait for admission; gives whether one was admitted, False if `gives_up` turned true first.

        Args:
            alone: Wait until nobody is inside, and let nobody in meanwhile.
            gives_up: Asked whenever something changed; call `look_again` when its answer did.
        """
        admitted = self._admit(alone=alone, gives_up=gives_up)
        try:
            yield admitted
        finally:
            if admitted:
                with self._changed:
                    self._inside -= 1
                    self._alone = False
                    self._changed.notify_all()

    def look_again(self) -> None:
        """Have everyone who waits ask again whether to give up."""
        with self._changed:
            self._changed.notify_all()

    def _admit(self, *, alone: bool, gives_up: Callable[[], bool]) -> bool:
        with self._changed:
            self._waiting_alone += alone
            try:
                while not self._has_room(alone=alone):
                    if gives_up():
                        return False
                    self._changed.wait()
            finally:
                self._waiting_alone -= alone
                self._changed.notify_all()
            self._inside += 1
            self._alone = alone
            return True

    def _has_room(self, *, alone: bool) -> bool:
        if alone:
            return self._inside == 0
        return not self._alone and not self._waiting_alone
