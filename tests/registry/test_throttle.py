"""All downloads of a process together are no faster than they may be."""

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from bitinglip.registry.transfer.throttle import Throttle, find_throttle


def test_a_throttle_holds_all_downloads_together_to_its_rate() -> None:
    throttle, stop = Throttle(1_000_000), threading.Event()

    def take(counts: Sequence[int]) -> None:
        for count in counts:
            throttle.take(count, stop)

    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(take, [[50_000] * 5] * 4))
    assert 0.7 <= time.monotonic() - began <= 1.5


def test_what_was_not_used_for_long_is_not_made_up_for() -> None:
    throttle, stop = Throttle(100_000), threading.Event()
    throttle.take(1, stop)
    threading.Event().wait(1.0)
    began = time.monotonic()
    throttle.take(100_000, stop)
    assert time.monotonic() - began >= 0.6


def test_without_a_limit_nobody_waits() -> None:
    began = time.monotonic()
    Throttle(None).take(10**15, threading.Event())
    assert time.monotonic() - began < 1


def test_all_downloads_of_a_process_share_one() -> None:
    assert find_throttle(5_000_000) is find_throttle(5_000_000)
