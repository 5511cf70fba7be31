"""When a failed attempt is followed by another, and after how long."""

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.domain.retry import decide_retry

BASES = st.floats(1, 60)


@given(st.integers(0, 10), BASES)
def test_the_delay_doubles_and_loses_a_quarter_at_most(failures: int, base: float) -> None:
    delay = decide_retry(failures=failures, max_attempts=failures + 2, retryable=True, base_seconds=base).delay

    assert delay is not None
    most = base * 2**failures
    assert 0.75 * most - 1e-5 <= delay.total_seconds() <= most + 1e-5


@given(st.integers(1, 11), st.booleans(), BASES)
def test_a_task_gets_all_its_attempts_and_no_more(max_attempts: int, retryable: bool, base: float) -> None:
    failures = 0
    while decide_retry(failures=failures, max_attempts=max_attempts, retryable=retryable, base_seconds=base).delay:
        failures += 1

    assert failures + 1 == (max_attempts if retryable else 1)


def test_tasks_that_failed_together_do_not_return_together() -> None:
    delays = {decide_retry(failures=1, max_attempts=4, retryable=True, base_seconds=2).delay for _ in range(50)}

    assert len(delays) > 40
