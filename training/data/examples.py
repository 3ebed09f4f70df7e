"""Parses rows of data into examples.

There is a parser for each kind of row: transcripts of HH-RLHF, preferences, pools of scored responses, and prompts
alone. A row that cannot be used is never repaired silently; it is counted by the reason.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from random import Random
from typing import Any, NamedTuple

from infalign.templates import Message
from training.data.defects import Defect

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
LAST = "\n\nAssistant:"
"""What a transcript's last response follows."""
NOTHING: tuple[Any, ...] = (None, "", [], {})
"""Values of other keys of a message that say nothing."""


class Example(NamedTuple):
    """A prompt, and what is known about responses to it."""

    prompt: Sequence[Message]
    """The conversation that is answered."""
    answers: tuple[str, ...] = ()
    """Responses that are worth imitating."""
    pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of responses, the better one first."""


Parser = Callable[[Any], Example]
"""Makes an example of a row, and raises :class:`~training.data.defects.Defect` if the row cannot be used."""


def read_examples(
    rows: Iterable[Any], parse: Parser, limit: int | None = None, check: Callable[[Example], None] = lambda _: None
) -> tuple[list[Example], Counter[str]]:
    """Parse rows and count those that cannot be used.

    Args:
        rows: Rows as they were read.
        parse: Parser of a row.
        limit: Examples at most.
        check: Raises :class:`~training.data.defects.Defect` for an example that cannot be used for another reason.

    Returns:
        Examples, and the number of other rows by reason.
    """
    examples: list[Example] = []
    defects: Counter[str] = Counter()
    for row in rows:
        if limit is not None and len(examples) >= limit:
            break
        try:
            example = read_row(row, parse)
            check(example)
        except Defect as defect:
            defects[str(defect)] += 1
        else:
            examples.append(example)
    return examples, defects


def read_row(row: Any, parse: Parser) -> Example:
    """Parse one row.

    Args:
        row: A row, or a defect in its place.
        parse: Parser of a row.

    Raises:
        Defect: The row cannot be used.
    """
    if isinstance(row, Defect):
        raise row
    example = parse(row)
    _check_pairs(example.pairs)
    _check_turns(example.prompt)
    return example


def parse_transcript(row: Any) -> Example:
    """Parse a row of HH-RLHF: two whole transcripts that differ in the last response.

    Raises:
        Defect: The row cannot be used.
    """
    fields = _fields(row)
    sides = []
    for name in ("chosen", "rejected"):
        prompt, separator, response = _text(fields.get(name), f"no {name} transcript").rpartition(LAST)
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
        {"role": ROLES[who], "content": text.strip()} for who, text in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return Example(messages, (chosen,), ((chosen, rejected),))


def parse_preference(row: Any) -> Example:
    """Parse a row with ``chosen``, ``rejected`` and usually ``prompt``, each as text or as messages.

    A side is the response alone or the whole conversation. The conversation begins with the prompt, if there is one,
    and ends with the response.

    Raises:
        Defect: The row cannot be used.
    """
    fields = _fields(row)
    (prompt, chosen), (other, rejected) = (_side(fields, name) for name in ("chosen", "rejected"))
    if prompt != other:
        raise Defect("prompts differ")
    return Example(prompt, (chosen,), ((chosen, rejected),))


def parse_prompt(row: Any) -> Example:
    """Parse a row with a ``prompt`` as text or as messages, or a row that is the text itself.

    Raises:
        Defect: The row cannot be used.
    """
    return Example(parse_messages(row if isinstance(row, str) else _fields(row).get("prompt")))


def make_pool_parser(pairs: int, answers: int, random: Random) -> Parser:
    """Make a parser of rows with a ``prompt`` and its ``responses``.

    A response has a ``text`` and a finite ``score``; higher is better.

    Args:
        pairs: Comparisons per prompt, drawn at random.
        answers: Responses per prompt that are worth imitating, the best ones.
        random: Source of random numbers.
    """

    def parse(row: Any) -> Example:
        fields = _fields(row)
        prompt, responses = parse_messages(fields.get("prompt")), fields.get("responses")
        if not isinstance(responses, list):
            raise Defect("responses are not a list")
        best_first = sorted(map(_text_and_score, responses), key=lambda response: -response[1])
        texts = [(text, score) for text, score in best_first if text]
        unequal = [(a, b) for (a, high), (b, low) in combinations(texts, 2) if high > low and a != b]
        if not unequal:
            raise Defect("no two responses with different scores")
        return Example(
            prompt,
            tuple(text for text, _ in texts[:answers]),
            tuple(random.sample(unequal, min(pairs, len(unequal)))),
        )

    return parse


def parse_messages(prompt: Any) -> list[Message]:
    """Return the messages of a prompt that is text or messages.

    Raises:
        Defect: It is neither.
    """
    if prompt is None:
        raise Defect("no prompt")
    if not isinstance(prompt, str):
        return _messages(prompt, "a prompt that is neither text nor messages")
    if prompt.rstrip().endswith(LAST.strip()) and TURN.search(f"\n\n{prompt}"):
        raise Defect("a transcript in place of a prompt")
    return [{"role": "user", "content": _text(prompt)}]


def _fields(row: Any) -> dict[Any, Any]:
    if not isinstance(row, dict):
        raise Defect("not an object")
    return row


def _text(value: Any, otherwise: str = "") -> str:
    """Return ``value`` if it is text that can be written. Otherwise ``otherwise`` is the reason."""
    if not isinstance(value, str):
        raise Defect(otherwise)
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may escape one half of a surrogate pair
        raise Defect("text that is not valid Unicode") from None
    return value


def _messages(value: Any, otherwise: str) -> list[Message]:
    """Return the messages in ``value``, with role and content alone. Otherwise ``otherwise`` is the reason.

    The chat template gets role and content only. Other keys may therefore hold nothing (null, an empty text, list or
    object), as those of a client's own answer do, or be a ``name``. Anything else that they hold would be lost.
    """
    if not isinstance(value, list) or not value:
        raise Defect(otherwise)
    messages = []
    for message in value:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise Defect("a message without role and content")
        if any(value not in NOTHING for key, value in message.items() if key not in ("role", "content", "name")):
            raise Defect("a message with more than role, content and name")
        role, content = message["role"], message["content"]
        messages.append(
            {
                "role": _text(role, "a message whose role is no text"),
                "content": _text(content, "a message whose content is no text"),
            }
        )
    return messages


def _side(fields: dict[Any, Any], name: str) -> tuple[list[Message], str]:
    """Return the prompt that ``chosen`` or ``rejected`` answers, and the response."""
    prompt, side = fields.get("prompt"), fields.get(name)
    if isinstance(side, str):
        return parse_messages(prompt), _text(side).strip()
    *before, response = _messages(side, f"{name} is neither text nor messages")
    if response["role"] != "assistant":
        raise Defect("a response that is not the assistant's")
    if not before:
        return parse_messages(prompt), response["content"].strip()
    if prompt is not None:
        beginning = parse_messages(prompt)
        turns = before[1:] if isinstance(prompt, str) and before[0]["role"] == "system" else before
        if turns[: len(beginning)] != beginning:
            raise Defect("a conversation that does not begin with its prompt")
    return before, response["content"].strip()


def _text_and_score(response: Any) -> tuple[str, float]:
    """Return the text and the score of a pool's response."""
    if not isinstance(response, dict):
        raise Defect("a response without text")
    text, score = _text(response.get("text"), "a response without text").strip(), response.get("score")
    if score is None:
        raise Defect("a response without a score")
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not -math.inf < score < math.inf:
        raise Defect("a score that is not a finite number")
    return text, score


def _check_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    for better, worse in pairs:
        if not better or not worse:
            raise Defect("empty response")
        if better == worse:
            raise Defect("equal responses")


def _check_turns(prompt: Iterable[Message]) -> None:
    """Check that user and assistant alternate, the user first and last, after at most one system message."""
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
