from collections.abc import Callable
from typing import Any

import pytest
from engine_driver import Driver

Drive = Callable[..., Driver]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"prompt": None}, "invalid_request", "either a prompt or messages"),
        ({"prompt": " "}, "invalid_request", "empty; write what the model"),
        ({"temperature": -1}, "invalid_request", "temperature: -1"),
        ({"temperature": 3}, "invalid_request", "temperature: 3"),
        ({"max_tokens": 0}, "invalid_request", "max_tokens: 0"),
        ({"max_tokens": 509}, "invalid_request", "at most 507"),
        ({"prompt": "x" * 512}, "prompt_too_long", "512 tokens"),
        ({"prompt": None, "messages": [{"role": "user", "content": "hi"}]}, "invalid_request", "no chat template"),
        ({"json_schema": {"type": "no such type"}}, "invalid_request", "json_schema"),
        ({"made": [9_999]}, "invalid_request", "9999"),
        ({"colour": "red"}, "invalid_request", "colour"),
    ],
)
def test_a_bad_request_fails_alone_and_says_what_is_wrong(
    drive: Drive, options: dict[str, Any], code: str, words: str
) -> None:
    driver = drive()
    driver.add("good", "hello")
    driver.step(2)
    driver.add("bad", **options)
    driver.run()
    failure = driver.failure("bad")
    assert (failure.code, failure.retryable) == (code, False)
    assert words in failure.message
    assert driver.result("good")["finish_reason"] == "length"


def test_tokens_that_the_model_does_not_have_are_refused(drive: Drive) -> None:
    driver = drive()
    driver.tokenizer.add_tokens([f"unheard{number}" for number in range(20)])
    driver.add("bad", "unheard19")
    driver.run()
    assert "does not belong" in driver.failure("bad").message


def test_max_tokens_left_at_its_default_shrinks_to_the_context(drive: Drive) -> None:
    driver = drive()
    driver.add("long", "x" * 500, max_tokens=None, logprobs=0)
    driver.run()
    assert len(driver.made("long")) == 12


def test_a_prompt_is_one_user_turn_where_the_model_has_a_template(drive: Drive) -> None:
    driver = drive(chat=True)
    plain = drive()
    assert driver.ask("hi") == plain.ask("<|user|>hi<|assistant|>")
    assert driver.ask("hi", raw=True) == plain.ask("hi")


def test_messages_go_through_the_template(drive: Drive) -> None:
    driver = drive(chat=True)
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hi"}]
    driver.add("chat", messages=messages, prompt=None)
    driver.run()
    assert driver.result("chat") == drive().ask("<|system|>be<|user|>hi<|assistant|>")


def test_a_template_that_refuses_the_roles_fails_that_request(drive: Drive) -> None:
    driver = drive(chat=True)
    driver.tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    driver.add("bad", "hi")
    driver.run()
    assert "roles must alternate" in driver.failure("bad").message


def test_a_truncation_left_in_the_tokenizer_does_not_cut_prompts(drive: Drive) -> None:
    driver = drive()
    driver.tokenizer("something else", truncation=True, max_length=3)
    assert driver.ask("hello world") == drive().ask("hello world")


def test_usage_counts_tokens_and_shares_the_time(drive: Drive) -> None:
    driver = drive()
    driver.add("a", "four", max_tokens=5)
    driver.add("b", "fourteen", max_tokens=5)
    driver.run()
    a, b = driver.end("a").usage, driver.end("b").usage
    assert (a.prompt_tokens, a.completion_tokens) == (4, 5)
    assert (b.prompt_tokens, b.completion_tokens) == (8, 5)
    assert a.engine_seconds > 0
    assert a.engine_seconds == pytest.approx(b.engine_seconds)


def test_events_come_in_order(drive: Drive) -> None:
    driver = drive()
    driver.ask()
    (events,) = driver.events.values()
    kinds = [type(event).__name__ for event in events]
    assert kinds == [*["Text"] * (len(kinds) - 1), "Finished"]


def test_a_later_attempt_continues_the_text_of_an_earlier_one(drive: Drive) -> None:
    driver = drive()
    driver.add("whole", "hello", max_tokens=16, logprobs=0, temperature=1, seed=7, repetition_penalty=10)
    driver.run()
    made = driver.made("whole")
    driver.add("rest", "hello", made=made[:9], max_tokens=16, logprobs=0, temperature=1, seed=7, repetition_penalty=10)
    driver.run()
    assert driver.made("rest") == made[9:]
    assert driver.result("rest")["text"] == driver.result("whole")["text"]
    assert driver.end("rest").usage.completion_tokens == 7


def test_an_unknown_request_cannot_be_cancelled(drive: Drive) -> None:
    driver = drive()
    driver.engine.cancel("nobody")
    assert driver.step() == []


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_cancelled_request_ends_at_the_next_step_and_disturbs_nobody(drive: Drive, steps: int) -> None:
    driver = drive(max_rows=2)
    for name in ("a", "b", "c"):
        driver.add(name, f"hello {name}", logprobs=0)
    driver.step(steps)
    for name in ("a", "c"):
        driver.engine.cancel(name)
    driver.step()
    assert driver.failure("a").code == driver.failure("c").code == "cancelled"
    driver.run()
    assert driver.made("b") == driver.expect("hello b")


def test_a_long_prompt_is_cancelled_while_it_is_read(drive: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = drive()
    monkeypatch.setattr(driver.engine._pace, "chunk", lambda **_: 16)
    driver.add("long", "x" * 200)
    driver.step(2)
    assert driver.engine.memory_bytes > sum(driver.engine._weights.values())
    driver.engine.cancel("long")
    driver.step()
    assert driver.failure("long").code == "cancelled"
    assert not driver.engine.busy
    assert driver.engine.memory_bytes == sum(driver.engine._weights.values())


def test_a_closed_engine_holds_no_weights(drive: Drive) -> None:
    driver = drive()
    driver.ask()
    driver.engine.close()
    assert driver.engine.memory_bytes == 0


def test_an_engine_says_whether_its_next_step_reads_a_prompt(drive: Drive) -> None:
    driver = drive()
    assert not driver.engine.prefilling
    driver.add("first", "hello", max_tokens=4)
    assert driver.engine.prefilling

    driver.step()
    assert not driver.engine.prefilling
    driver.add("long", "x" * 400, max_tokens=4)
    while driver.engine.prefilling:
        driver.step()

    driver.run()
    assert driver.result("long")["finish_reason"] == "length"
