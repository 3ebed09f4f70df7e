"""What one row of a file teaches: HH-RLHF's transcripts, preferences, pools of scored responses, prompts.

Every row that cannot be used is counted by reason, never silently repaired.
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
NOTHING: tuple[Any, ...] = (None, "", [], {})


class Example(NamedTuple):
    """A prompt, and what is known of responses to it."""

    prompt: Sequence[Message]
    answers: tuple[str, ...] = ()
    """Worth imitating."""
    pairs: tuple[tuple[str, str], ...] = ()
    """The better response of two, then the worse."""


Parser = Callable[[Any], Example]
"""What a row says; raises :class:`Defect` if it cannot be used."""


def read(
    rows: Iterable[Any], parse: Parser, limit: int | None = None, check: Callable[[Example], None] = lambda _: None
) -> tuple[list[Example], Counter[str]]:
    """The examples of ``rows``, the first ``limit`` that can be used, and the others counted by reason.

    ``check`` raises :class:`Defect` for an example that its parser accepts and the caller cannot use.
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
    """The example of one row.

    Raises:
        Defect: it cannot be used.
    """
    if isinstance(row, Defect):
        raise row
    example = parse(row)
    _check_pairs(example.pairs)
    _check_turns(example.prompt)
    return example


def transcripts(row: Any) -> Example:
    """A row of HH-RLHF: two whole transcripts that differ in the last response."""
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
        {"role": ROLES[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return Example(messages, (chosen,), ((chosen, rejected),))


def preferences(row: Any) -> Example:
    """A row of ``chosen``, ``rejected`` and mostly ``prompt``, each of text or messages.

    A side is the response, or the whole conversation: the prompt, if there is one, and what follows up to the response.
    """
    fields = _fields(row)
    (prompt, chosen), (other, rejected) = (_side(fields, name) for name in ("chosen", "rejected"))
    if prompt != other:
        raise Defect("prompts differ")
    return Example(prompt, (chosen,), ((chosen, rejected),))


def prompts(row: Any) -> Example:
    """A row with a ``prompt`` alone, text or messages; or the text itself."""
    return Example(conversation(row if isinstance(row, str) else _fields(row).get("prompt")))


def pools(pairs: int, answers: int, random: Random) -> Parser:
    """Rows of a ``prompt`` and its ``responses``, each with ``text`` and a finite ``score``, higher is better.

    Of each pool ``pairs`` comparisons are drawn at random, and the ``answers`` best are worth imitating.
    """

    def parse(row: Any) -> Example:
        fields = _fields(row)
        prompt, responses = conversation(fields.get("prompt")), fields.get("responses")
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


def conversation(prompt: Any) -> list[Message]:
    """The messages of a prompt that is text or messages.

    Raises:
        Defect: it is neither.
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
    """``value``, if it is text that can be written; ``otherwise`` is the reason if it is no text."""
    if not isinstance(value, str):
        raise Defect(otherwise)
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON may escape one half of a surrogate pair
        raise Defect("text that is not valid Unicode") from None
    return value


def _messages(value: Any, otherwise: str) -> list[Message]:
    """The messages in ``value``, role and content alone; ``otherwise`` is the reason if it is no list of any.

    The chat template is given role and content alone. So other keys may hold nothing (null, an empty text, list or
    object), as those of a client's own answer do, or be a ``name``; whatever else they hold would be lost.
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
    """The prompt that ``chosen`` or ``rejected`` answers, and the response."""
    prompt, side = fields.get("prompt"), fields.get(name)
    if isinstance(side, str):
        return conversation(prompt), _text(side).strip()
    *before, response = _messages(side, f"{name} is neither text nor messages")
    if response["role"] != "assistant":
        raise Defect("a response that is not the assistant's")
    if not before:
        return conversation(prompt), response["content"].strip()
    if prompt is not None:
        beginning = conversation(prompt)
        turns = before[1:] if isinstance(prompt, str) and before[0]["role"] == "system" else before
        if turns[: len(beginning)] != beginning:
            raise Defect("a conversation that does not begin with its prompt")
    return before, response["content"].strip()


def _text_and_score(response: Any) -> tuple[str, float]:
    """What a response of a pool says, and how good it is."""
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
