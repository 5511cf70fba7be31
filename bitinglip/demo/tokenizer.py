"""The tokenizer of the demo model: letters and digits one by one, and the words of its own phrasings whole.

Reversing a word needs its letters and adding needs digits, but spelling out "What is the sum of" would double the
length of every question, and the training time with it. Any other text falls back to bytes, so nothing is unknown.
"""

import re
from string import Formatter

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bitinglip.demo import phrasings

END = "<|end|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (PAD, "<|system|>", "<|user|>", "<|assistant|>", END)
MAX_POSITIONS = 1024
PIECE = r" ?[A-Za-z]+|[\s\S]"
SHORTEST_WHOLE_WORD = 2

# A message is one text, or a list of parts as OpenAI's clients send it.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- set role = message['role'] if message['role'] in ('user', 'assistant') else 'system' -%}
{{- '<|' + role + '|>' -}}
{%- if message['content'] is string -%}
{{- message['content'] | trim -}}
{%- else -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] | trim -}}{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer with its chat template. It is the same at every call: nothing is learnt from a corpus."""
    tokens = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *_whole_words()]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # No merges: a piece is in the vocabulary whole, or it is spelled out.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=list(SPECIAL_TOKENS),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def _whole_words() -> list[str]:
    """Return the words of the phrasings as byte-level tokens: those with a space before or a capital.

    `'name'` in quotes is none of them: a word to be reversed is spelled out, whatever the word.
    """
    texts = (
        *phrasings.CAPITAL_PHRASINGS,
        *phrasings.SUM_PHRASINGS,
        *phrasings.DIFFERENCE_PHRASINGS,
        *phrasings.REVERSE_PHRASINGS,
        *phrasings.GREETINGS,
        phrasings.UNKNOWN_REPLY,
        "The capital",
        " reversed so",
    )
    literals = [literal for text in texts for literal, *_ in Formatter().parse(text)]
    pieces = {piece for literal in literals for form in (literal, literal.lower()) for piece in re.findall(PIECE, form)}
    whole = {piece for piece in pieces if len(piece.strip()) >= SHORTEST_WHOLE_WORD and not piece[0].islower()}
    return sorted(piece.replace(" ", "\u0120") for piece in whole)
