import pytest
from engine_driver import Driver
from tiny_models import ARCHITECTURES, UNSERVED, make_model

from bitinglip.errors import InvalidModelError

PROMPTS = {"a": "hello world", "b": "z", "c": "what is the capital of France?", "d": "three words here"}
SERVED = [name for name in ARCHITECTURES if name not in UNSERVED]
# transformers warns about missing kernels and about our tiny sizes; neither matters here.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("architecture", SERVED)
def test_greedy_text_of_requests_that_join_at_different_times_equals_generate(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(make_model(architecture))
    monkeypatch.setattr(driver.engine._pace, "chunk", lambda **_: 256)
    for name, prompt in PROMPTS.items():
        driver.add(name, prompt, max_tokens=20, logprobs=0)
        driver.step(4)
    driver.add("e", PROMPTS["c"], max_tokens=20, logprobs=0)
    driver.add("f", PROMPTS["b"], max_tokens=7, logprobs=0)
    driver.run()
    expected = {name: driver.expect(prompt, 20) for name, prompt in PROMPTS.items()}
    assert len(set(expected["c"])) > 3, "a model that repeats one token would pass whatever the engine does"
    expected |= {"e": expected["c"], "f": expected["b"][:7]}
    assert {name: driver.made(name) for name in expected} == expected
    assert {name: driver.text(name) for name in expected} == {n: driver.decode(ids) for n, ids in expected.items()}


@pytest.mark.parametrize("architecture", SERVED)
def test_a_prompt_read_in_chunks_beside_others_equals_generate(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(make_model(architecture))
    monkeypatch.setattr(driver.engine._pace, "chunk", lambda **_: 16)
    long = "a long prompt that takes several chunks to be read, whatever the architecture"
    driver.add("short", PROMPTS["c"], max_tokens=16, logprobs=0)
    driver.step(2)
    driver.add("long", long, max_tokens=8, logprobs=0)
    driver.run()
    assert driver.made("long") == driver.expect(long, 8)
    assert driver.made("short") == driver.expect(PROMPTS["c"], 16)


@pytest.mark.parametrize("architecture", sorted(UNSERVED))
def test_a_model_whose_rows_cannot_be_kept_apart_is_refused_at_load(architecture: str) -> None:
    with pytest.raises(InvalidModelError, match=r"another engine|eight tokens"):
        Driver(make_model(architecture))


def test_at_least_twenty_architectures_are_served() -> None:
    assert len(SERVED) >= 20
