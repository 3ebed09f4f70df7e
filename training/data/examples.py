"""What one row of a file teaches: HH-RLHF's transcripts, TRL's preference rows, pools of scored responses, prompts.

Every row that cannot be used is counted by reason, never silently repaired.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from random import Random
from typing import Any, NamedTuple

from infalign.templates import Message

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
LAST = "\n\nAssistant:"


class Defect(Exception):
    """Why a row cannot be used."""


class Example(NamedTuple):
    """A prompt, and what is known of responses to it."""

    prompt: Sequence[Message]
    answers: tuple[str, ...] = ()
    """Worth imitating."""
    pairs: tuple[tuple[str, str], ...] = ()
    """The better response of two, then the worse."""


Parser = Callable[[dict[str, Any]], Example]


def read(rows: Iterable[Any], parse: Parser, limit: int | None = None) -> tuple[list[Example], Counter[str]]:
    """The examples of ``rows``, the first ``limit`` that can be used, and the others counted by reason."""
    found: list[Example] = []
    defects: Counter[str] = Counter()
    for row in rows:
        if limit is not None and len(found) >= limit:
            break
        try:
            if not isinstance(row, dict):
                raise Defect("not an object")
            example = parse(row)
            _check_pairs(example.pairs)
            _check_turns(example.prompt)
        except Defect as defect:
            defects[str(defect)] += 1
        else:
            found.append(example)
    return found, defects


def transcripts(row: dict[str, Any]) -> Example:
    """A row of HH-RLHF: two whole transcripts that differ in the last response."""
    sides = []
    for name in ("chosen", "rejected"):
        if not isinstance(row.get(name), str):
            raise Defect(f"no {name} transcript")
        prompt, separator, response = row[name].rpartition(LAST)
        if not separator:
            raise Defect("no response of the assistant")
        if TURN.search(response):
            raise Defect("turns do not alternate")
        sides.append((prompt, response.strip()))
    (prompt, chosen), (other, rejected) = sides
    if prompt != other:
        raise Defect("prompts differ")
    parts = TURN.split(prompt)
    if parts[0].strip():
        raise Defect("text before the first turn")
    messages = [
        {"role": ROLES[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return Example(messages, (chosen,), ((chosen, rejected),))


def preferences(row: dict[str, Any]) -> Example:
    """A row in TRL's conversational preference format, with an explicit prompt or the common beginning of both."""
    if not all(isinstance(row.get(name), list) and row[name] for name in ("chosen", "rejected")):
        raise Defect("chosen and rejected are not lists of messages")
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = row.get("prompt")
    if prompt is None:
        prompt, chosen, other, rejected = chosen[:-1], chosen[-1:], rejected[:-1], rejected[-1:]
        if prompt != other:
            raise Defect("prompts differ")
    if not isinstance(prompt, list) or len(chosen) != 1 or len(rejected) != 1:
        raise Defect("not one response to a list of messages")
    _check_messages([*prompt, *chosen, *rejected])
    if chosen[0]["role"] != "assistant" or rejected[0]["role"] != "assistant":
        raise Defect("a response that is not the assistant's")
    better, worse = (side[0]["content"].strip() for side in (chosen, rejected))
    return Example(prompt, (better,), ((better, worse),))


def prompts(row: dict[str, Any]) -> Example:
    """A row with a ``prompt`` alone, text or messages."""
    return Example(conversation(row.get("prompt")))


def pools(pairs: int, answers: int, random: Random) -> Parser:
    """Rows of a ``prompt`` and its ``responses``, each with ``text`` and ``score``, higher is better.

    Of each pool ``pairs`` comparisons are drawn at random, and the ``answers`` best are worth imitating.
    """

    def parse(row: dict[str, Any]) -> Example:
        prompt, given = conversation(row.get("prompt")), row.get("responses")
        if not isinstance(given, list):
            raise Defect("responses are not a list")
        if not all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in given):
            raise Defect("a response without text")
        if not all(isinstance(one.get("score"), (int, float)) for one in given):
            raise Defect("a response without a score")
        best_first = sorted(given, key=lambda one: -one["score"])
        texts = [(one["text"].strip(), one["score"]) for one in best_first if one["text"].strip()]
        unequal = [(a, b) for (a, high), (b, low) in combinations(texts, 2) if high > low and a != b]
        if not unequal:
            raise Defect("no two responses with different scores")
        return Example(
            prompt,
            tuple(text for text, _ in texts[:answers]),
            tuple(random.sample(unequal, min(pairs, len(unequal)))),
        )

    return parse


def conversation(prompt: Any) -> Sequence[Message]:
    """The messages of a prompt that is text or messages.

    Raises:
        Defect: it is neither.
    """
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    if not isinstance(prompt, list) or not prompt:
        raise Defect("a prompt that is neither text nor messages")
    _check_messages(prompt)
    return prompt


def _check_messages(messages: Iterable[Any]) -> None:
    for message in messages:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise Defect("a message without exactly role and content")
        if not isinstance(message["content"], str):
            raise Defect("a message whose content is no text")


def _check_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    for better, worse in pairs:
        if not better or not worse:
            raise Defect("empty response")
        if better == worse:
            raise Defect("equal responses")


def _check_turns(prompt: Iterable[Message]) -> None:
    """User and assistant in turn, the user first and last, after at most one system message; no turn empty."""
    messages = list(prompt)
    if messages and messages[0]["role"] == "system":
        messages = messages[1:]
    if not messages:
        raise Defect("empty prompt")
    if any(not message["content"].strip() for message in messages):
        raise Defect("empty turn")
    if any(message["role"] != ("user", "assistant")[turn % 2] for turn, message in enumerate(messages)):
        raise Defect("turns do not alternate")
    if messages[-1]["role"] != "user":
        raise Defect("the prompt does not end with the user")
