import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from engine_driver import Driver

from bitinglip.domain.payloads import TextPayload
from bitinglip.engine.text.request import TextRequest
from bitinglip.engine.text.sampling import Choice, Sampler, make_choice

Drive = Callable[..., Driver]
CPU = torch.device("cpu")


def choice(prompt_ids: list[int] | None = None, **options: object) -> Choice:
    payload = TextPayload.model_validate({"prompt": "x", **options})
    return make_choice(TextRequest("id", payload, prompt_ids or [0], [], 9), 5, CPU, None)


def draw(logits: list[float], times: int = 300, **options: object) -> set[int | None]:
    sampler = Sampler([choice(**options)], CPU)
    return {sampler.choose(torch.tensor([logits]))[1][0] for _ in range(times)}


def test_temperature_zero_takes_the_most_likely_token() -> None:
    assert draw([0.0, 1.0, 3.0, 2.9, 0.0], temperature=0) == {2}


def test_every_token_can_come_at_temperature_one() -> None:
    assert draw([0.0, 0.1, 0.2, 0.1, 0.0], temperature=1) == {0, 1, 2, 3, 4}


def test_the_share_of_each_token_is_its_probability() -> None:
    torch.manual_seed(0)
    sampler = Sampler([choice(temperature=1)] * 4_000, CPU)
    logits = torch.tensor([[0.1, 0.2, 0.3, 0.4, 1e-9]]).log().expand(4_000, 5)
    drawn = torch.tensor(sampler.choose(logits)[1])
    shares = torch.bincount(drawn, minlength=5) / 4_000
    assert torch.allclose(shares, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.0]), atol=0.03)


def test_top_k_keeps_that_many() -> None:
    assert draw([1.0, 5.0, 4.9, 4.8, 0.0], temperature=1, top_k=2) == {1, 2}


def test_top_p_keeps_the_fewest_that_make_it_up() -> None:
    logits = [math.log(p) for p in (0.4, 0.3, 0.2, 0.05, 0.05)]
    assert draw(logits, temperature=1, top_p=0.6) == {0, 1}
    assert draw(logits, temperature=1, top_p=0.01) == {0}


def test_rows_with_different_rules_do_not_mix() -> None:
    rules = [choice(temperature=0), choice(temperature=2, top_k=1), choice(temperature=2), choice(temperature=0)]
    sampler = Sampler(rules, CPU)
    logits = torch.tensor([[0.0, 0.1, 0.3, 0.2, 0.1]] * 4)
    drawn = [sampler.choose(logits)[1] for _ in range(100)]
    assert {row[0] for row in drawn} == {row[1] for row in drawn} == {row[3] for row in drawn} == {2}
    assert {row[2] for row in drawn} == {0, 1, 2, 3, 4}


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.tensor([[2.0, 1.9, -1.0, 1.5, -1.0]])
    expected = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([[0, 2]]), logits.clone())
    assert Sampler([choice([0, 2], repetition_penalty=1.5, temperature=0)], CPU).choose(logits)[1] == [
        int(expected.argmax())
    ]
    assert int(expected.argmax()) == 1


def test_tokens_made_are_penalised_too(drive: Drive) -> None:
    driver = drive()
    driver.add("free", "hello", logprobs=0, max_tokens=60)
    driver.add("varied", "hello", logprobs=0, max_tokens=60, repetition_penalty=10)
    driver.run()
    assert len(set(driver.made("varied"))) > len(set(driver.made("free")))


def test_tokens_of_earlier_attempts_are_penalised_too() -> None:
    payload = TextPayload(prompt="x", repetition_penalty=2)
    seen = make_choice(TextRequest("id", payload, [0], [3], 9), 5, CPU, None).seen
    assert seen is not None
    assert seen.tolist() == [True, False, False, True, False]


def test_a_seed_gives_the_same_text_alone_and_among_others(drive: Drive) -> None:
    driver = drive()
    alone = driver.ask("hello", temperature=1.5, seed=1)
    for number in range(6):
        driver.add(f"r{number}", f"hello {number}", temperature=1.5, seed=number)
        driver.step()
    driver.add("again", "hello", temperature=1.5, seed=1)
    driver.run()
    assert driver.result("again") == alone
    assert driver.ask("hello", temperature=1.5, seed=2) != alone


def test_without_a_seed_texts_differ(drive: Drive) -> None:
    driver = drive()
    assert driver.ask("hello", temperature=2) != driver.ask("hello", temperature=2)


def test_a_failed_choice_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler([choice(temperature=1, seed=3)], CPU)
    twin = Sampler([choice(temperature=1, seed=3)], CPU)
    logits = torch.zeros(1, 5)

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError

    where = torch.where
    for _ in range(20):
        monkeypatch.setattr(torch, "where", fail)
        with pytest.raises(torch.OutOfMemoryError):
            sampler.choose(logits)
        monkeypatch.setattr(torch, "where", where)
        assert sampler.choose(logits)[1] == twin.choose(logits)[1]


def test_a_row_without_finite_logits_gets_no_token() -> None:
    logits = torch.tensor([[0.0, math.nan, 0.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0, 0.0], [-math.inf] * 5])
    assert Sampler([choice(temperature=0), choice(temperature=0), choice(temperature=1)], CPU).choose(logits)[1] == [
        None,
        2,
        None,
    ]


def test_logprobs_are_the_models_own(drive: Drive) -> None:
    driver = drive()
    driver.add("a", "hello", logprobs=3, max_tokens=4, temperature=1, seed=1, repetition_penalty=2)
    driver.add("b", "hi", max_tokens=4)
    driver.run()
    entries = driver.result("a")["logprobs"]
    assert "logprobs" not in driver.result("b")
    ids = driver.tokenizer("hello").input_ids + [entry["token_id"] for entry in entries]
    with torch.inference_mode():
        truth = driver.model(torch.tensor([ids])).logits[0, 4:-1].log_softmax(-1)
    for row, entry in zip(truth, entries, strict=True):
        assert entry["logprob"] == pytest.approx(float(row[entry["token_id"]]), abs=1e-4)
        assert [other["token_id"] for other in entry["top"]] == row.topk(3).indices.tolist()
        assert entry["token"] == driver.tokenizer.decode([entry["token_id"]])


def test_a_schema_gives_a_document_of_it(drive: Drive) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Lima", "Rome"]}, "large": {"type": "boolean"}},
        "required": ["city", "large"],
        "additionalProperties": False,
    }
    driver = drive()
    driver.add("free", "hello", logprobs=0)
    for number in range(4):
        driver.add(f"json-{number}", "hello", json_schema=schema, temperature=1, seed=number, max_tokens=60)
    driver.run()
    for number in range(4):
        result = driver.result(f"json-{number}")
        document = json.loads(result["text"])
        assert document["city"] in {"Lima", "Rome"}
        assert isinstance(document["large"], bool)
        assert result["finish_reason"] == "stop"
        assert result["text"] == json.dumps(document, separators=(",", ":")) or " " in result["text"]
    assert driver.made("free") == driver.expect("hello")


def test_a_document_is_complete_without_an_end_token(drive: Drive) -> None:
    driver = drive()
    driver.engine._loaded = replace(driver.engine._loaded, end_ids=frozenset())
    assert driver.ask("hello", json_schema={"enum": ["word"]}) == {"text": '"word"', "finish_reason": "stop"}


def test_a_document_cut_by_max_tokens_says_so(drive: Drive) -> None:
    result = drive().ask("hello", json_schema={"enum": ["a long word"]}, max_tokens=4)
    assert result["finish_reason"] == "length"
