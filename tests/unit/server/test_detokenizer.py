"""Tokens of an answer that comes in parts, as the text that the engine writes in one."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
from tokenizers.decoders import DecodeStream

from server.decoding.detokenizer import Detokenizer
from tests.fakes import ByteTokenizer, CharacterTokenizer
from training.tokenizer import train_tokenizer

TEXT = "Ünïcödé 日本語 🤖, naïve; x = 1.\n\n  a\tb <|end|> end"


def streamed(tokenizer: Any, prompt: Sequence[int], tokens: Sequence[int]) -> str:
    """The text by what vLLM detokenizes with (FastIncrementalDetokenizer)."""
    stream, text = DecodeStream(ids=list(prompt), skip_special_tokens=True), ""
    for token in tokens:
        try:
            new = stream.step(tokenizer.backend_tokenizer, token)
        except Exception as error:
            if "Invalid prefix" not in str(error):
                raise
            stream = DecodeStream(skip_special_tokens=True)
            new = stream.step(tokenizer.backend_tokenizer, token)
        text += new or ""
    return text


@pytest.mark.parametrize("kind", ["bytes of text", "any tokens"])
def test_it_writes_what_the_engine_writes(kind: str) -> None:
    tokenizer, rng = train_tokenizer(["why and how, a b c d e"], 300), random.Random(0)
    spelled = tokenizer(TEXT)["input_ids"]
    choices = spelled if kind == "bytes of text" else range(len(tokenizer))
    for _ in range(200):
        prompt = rng.choices(choices, k=rng.randrange(6))
        tokens = rng.choices(choices, k=rng.randrange(1, 40))
        text = Detokenizer(tokenizer, prompt)
        for token in tokens:
            text.add(token)
        assert text.text == streamed(tokenizer, prompt, tokens)
    whole = Detokenizer(tokenizer, spelled[:2])
    for token in spelled[2:]:
        whole.add(token)
    assert TEXT.replace("<|end|>", "").endswith(whole.text.replace("<|end|>", ""))


def test_a_copy_goes_on_by_itself() -> None:
    first = Detokenizer(ByteTokenizer(), b"x")
    first.add("é".encode()[0])
    assert first.text == ""
    other = first.copy()
    first.add("é".encode()[1])
    other.add(b"a"[0])
    assert (first.text, other.text) == ("é", "\N{REPLACEMENT CHARACTER}a")


def test_a_text_ends_before_the_stop_string_that_is_complete_first() -> None:
    text = Detokenizer(CharacterTokenizer(), [], ("cde", "d"))
    assert [text.add(ord(letter)) for letter in "abcd"] == [False, False, False, True]
    assert text.text == "abc"
    text = Detokenizer(CharacterTokenizer(), [], ("ab",), min_tokens=3)
    assert [text.add(ord(letter)) for letter in "abbab"] == [False, False, False, False, True]
    assert text.text == "abb"


def test_what_may_become_a_stop_string_is_not_settled() -> None:
    text = Detokenizer(CharacterTokenizer(), [], ("xyz", "y"))
    for letter in "abcd":
        text.add(ord(letter))
    assert (text.settled, text.text) == ("ab", "abcd")
    long = Detokenizer(CharacterTokenizer(), [], ("x" * 6,))
    for letter in "abc":
        long.add(ord(letter))
    assert long.settled == ""
