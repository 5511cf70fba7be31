"""When a failed attempt is followed by another."""

import random
from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """Try again after `delay`, or not at all (None)."""

    delay: timedelta | None


def decide_retry(*, failures: int, max_attempts: int, retryable: bool, base_seconds: float) -> RetryDecision:
    """Decide on an attempt that has just failed.

    Exponential: base * 2^(failures so far), with up to 25 % taken off at random so that tasks that failed together do
    not return together.

    Args:
        failures: Attempts that failed before this one.
        max_attempts: Attempts that a task may spend.
        retryable: Whether the error can go away by itself.
        base_seconds: Delay before the first retry.
    """
    if not retryable or failures + 1 >= max_attempts:
        return RetryDecision(None)
    seconds = base_seconds * 2**failures * random.uniform(0.75, 1)  # noqa: S311 - jitter, not a secret
    return RetryDecision(timedelta(seconds=seconds))
