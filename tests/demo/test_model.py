"""The shipped model loads without custom code, is small, and is right."""

from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from bitinglip.demo import model_folder
from bitinglip.demo.phrasings import UNKNOWN_REPLY
from bitinglip.demo.questions import held_out_questions, is_right
from bitinglip.demo.tokenizer import build_tokenizer
from bitinglip.demo.train import ask_model, training_batches

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(model_folder())


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(model_folder())


def test_at_least_95_percent_of_200_held_out_questions_are_right(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    questions = held_out_questions(200, seed=1)
    replies = ask_model(model, tokenizer, [question.text for question in questions])
    wrong = [
        (question.text, reply)
        for question, reply in zip(questions, replies, strict=True)
        if not is_right(question, reply)
    ]
    assert len(wrong) <= 10, wrong


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("What is the capital of Peru?", "The capital of Peru is Lima."),
        ("what is the capital of peru", "The capital of Peru is Lima."),
        ("What is 17 plus 25?", "7 plus 5 is 12, so 17 plus 25 is 42."),
        ("What is 80 - 35?", "10 minus 5 is 5, so 80 minus 35 is 45."),
        ("Reverse the word 'lamp'.", "lamp reversed is pmal."),
        ("Hello", UNKNOWN_REPLY),
    ],
)
def test_the_questions_of_the_readme_are_right(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str, reply: str
) -> None:
    assert ask_model(model, tokenizer, [text]) == [reply]


def test_a_reply_is_the_same_alone_and_in_a_batch(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [question.text for question in held_out_questions(8, seed=2)]
    assert ask_model(model, tokenizer, texts) == [ask_model(model, tokenizer, [text])[0] for text in texts]


def test_greedy_decoding_ends_with_the_end_token(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 17 plus 25?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=False,
    )
    output = model.generate(ids, max_new_tokens=100, do_sample=False)
    assert output[0, -1].item() == tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_the_folder_is_small_and_holds_no_code() -> None:
    files = list(model_folder().iterdir())
    assert sum(file.stat().st_size for file in files) <= 6_000_000
    assert {file.suffix for file in files} == {".json", ".safetensors", ".jinja", ".md"}


def test_the_model_is_a_small_llama_in_fp32(model: LlamaForCausalLM) -> None:
    assert isinstance(model, LlamaForCausalLM)
    assert model.num_parameters() <= 3_000_000
    assert model.dtype is torch.float32
    assert model.config.max_position_embeddings >= 512


def test_the_shipped_tokenizer_is_the_one_that_the_training_builds(tokenizer: PreTrainedTokenizerFast) -> None:
    built = build_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab()
    assert tokenizer.chat_template == built.chat_template


@pytest.mark.parametrize("text", ["What is the capital of Peru?", " two  spaces\n\ttab ", "héllo 日本 🙂", "17+25="])
def test_decoding_gives_the_text_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_training_batches_are_the_same_at_every_run() -> None:
    built = build_tokenizer()
    for (ids, labels), (ids_again, labels_again) in zip(
        islice(training_batches(built), 3), islice(training_batches(built), 3), strict=True
    ):
        assert torch.equal(ids, ids_again)
        assert torch.equal(labels, labels_again)
