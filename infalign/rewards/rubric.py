"""Rubrics of judges: the text that a judge reads, and the scores that it may write."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import softmax

from infalign.errors import InvalidValue
from infalign.templates import Message, render_conversation, tokenise

CONVERSATION, PROMPT, RESPONSE = "{conversation}", "{prompt}", "{response}"
"""Places in a rubric: all turns up to the response, the last of them alone, and the response."""
PLACES = re.compile(r"(\{conversation\}|\{prompt\}|\{response\})")
RUBRIC_MARK = "{#- a rubric: raw prompts are read as what a user says -#}"
"""Start of the chat templates that :func:`rubric_template` writes."""
_TURNS = (
    "{%- set turns = namespace(text='') -%}{%- for message in messages[:-1] -%}"
    "{%- set turns.text = turns.text ~ ('' if loop.first else '\\n\\n') -%}"
    "{%- set turns.text = turns.text ~ message['role'] ~ ': ' ~ (message['content'] or '') -%}"
    "{%- endfor -%}"
)
RUBRIC = """Rate how good the last answer in this conversation is.

5: correct, complete, and just what was asked for
4: good, with a small flaw
3: useful in part
2: mostly wrong, off the topic, or hard to read
1: useless or harmful

Conversation:
{conversation}

Answer to rate:
{response}

Write one number from 1 to 5 and nothing else."""
"""The rubric of a judge that is given none."""
SCORES = {str(score): float(score) for score in range(1, 6)}
"""The scores of a judge that is given none."""


def check_rubric(text: str) -> str:
    """Check that a rubric has one place for the response, and at most one of each other kind.

    Returns:
        The rubric.

    Raises:
        ValueError: It has not.
    """
    places = PLACES.findall(text)
    if RESPONSE not in places or len(set(places)) < len(places):
        raise ValueError(f"a text with {RESPONSE} once, and {CONVERSATION} or {PROMPT} where they are to be read")
    return text


def check_scores(scores: dict[str, float]) -> dict[str, float]:
    """Check that there are at least two scores, that they differ, and that each can be written.

    Returns:
        The scores.

    Raises:
        ValueError: They do not.
    """
    if len(set(scores.values())) < 2 or not all(map(str.strip, scores)) or not np.isfinite([*scores.values()]).all():
        raise ValueError("at least two texts with different numbers, such as {yes: 1, no: 0}")
    return scores


def write_conversation(messages: Sequence[Message]) -> str:
    """Write a conversation as a judge reads it: each turn after the name of its role.

    Examples:
        >>> write_conversation([{"role": "user", "content": "Hello?"}])
        'user: Hello?'
    """
    return "\n\n".join(f"{message['role']}: {message['content'] or ''}" for message in messages)


def fill_rubric(rubric: str, messages: Sequence[Message], response: str) -> str:
    """Fill the places of a rubric.

    Args:
        rubric: A rubric that :func:`check_rubric` accepts.
        messages: The conversation up to the response.
        response: The response.

    Examples:
        >>> fill_rubric("To {conversation}: {response}?", [{"role": "user", "content": "Hi {response}"}], "Hello")
        'To user: Hi {response}: Hello?'
    """
    prompt = messages[-1]["content"] or "" if messages else ""  # nothing precedes a first turn that is continued
    values = {CONVERSATION: write_conversation(messages), PROMPT: prompt, RESPONSE: response}
    return "".join(values.get(part, part) for part in PLACES.split(rubric))


def rubric_template(rubric: str, around: tuple[str, str] | str) -> str:
    """Write a chat template that renders a conversation and its response as a rubric.

    Args:
        rubric: A rubric that :func:`check_rubric` accepts.
        around: What stands before and after the text; or the chat template of a judge, to which the text is what the
            user says. The judge is about to answer then, and does not think first.

    Returns:
        The template, in Jinja.

    Examples:
        >>> from jinja2 import Template
        >>> template = Template(rubric_template("To {prompt}: {response}", ("<s>", "</s>")))
        >>> template.render(messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo"}])
        '<s>To Hi: Yo</s>'
    """
    values = {
        CONVERSATION: "turns.text",
        PROMPT: "(messages[-2]['content'] or '')",
        RESPONSE: "messages[-1]['content']",
    }
    parts = [values.get(part) or json.dumps(part, ensure_ascii=False) for part in PLACES.split(rubric) if part]
    text = " ~ ".join(parts)
    if isinstance(around, tuple):
        before, after = (json.dumps(part, ensure_ascii=False) for part in around)
        return f"{RUBRIC_MARK}{_TURNS}{{{{- {before} ~ {text} ~ {after} -}}}}"
    return (
        f"{RUBRIC_MARK}{_TURNS}{{%- set rubric = {text} -%}}"
        "{%- set messages = [{'role': 'user', 'content': rubric}] -%}"
        f"{{%- set add_generation_prompt = true -%}}{{%- set enable_thinking = false -%}}{around}"
    )


def reads_rubric(tokenizer: Any) -> bool:
    """Say whether the chat template of a tokenizer was written by :func:`rubric_template`."""
    return str(tokenizer.chat_template or "").startswith(RUBRIC_MARK)


def score_tokens(tokenizer: Any, scores: Mapping[str, float], key: str) -> tuple[int, ...]:
    """Find the tokens with which a judge writes its scores, each as its whole answer.

    Args:
        tokenizer: The judge's tokenizer, with a chat template by :func:`rubric_template`.
        scores: What each score is worth.
        key: Name of the setting that error messages blame.

    Returns:
        A token id for each score.

    Raises:
        InvalidValue: A score is not one token, or two scores are the same token.
    """
    accepted = "texts that are one token of the judge's answer"
    rendering = render_conversation(tokenizer, [{"role": "user", "content": "Is it?"}], "It is.")
    before = tokenise(tokenizer, rendering)
    found: dict[int, str] = {}
    for score in scores:
        tokens = tokenizer(rendering.text + score, add_special_tokens=False)["input_ids"]
        if tokens[:-1] != before:
            raise InvalidValue(key, score, accepted)
        if other := found.get(tokens[-1]):
            raise InvalidValue(key, score, f"{accepted}, other than that of {other!r}")
        found[int(tokens[-1])] = score
    return tuple(found)


def expected_score(logits: Sequence[float], values: Sequence[float]) -> float:
    """Compute the mean of the scores, weighted by the probabilities of the tokens that write them.

    Args:
        logits: Logit or log-probability of each score's token.
        values: What each score is worth.

    Returns:
        The mean; not a number if a logit is not one.

    Examples:
        >>> round(expected_score([0.0, 0.0], [1.0, 5.0]), 3)
        3.0
    """
    return float(softmax(np.asarray(logits, dtype=np.float64)) @ np.asarray(values, dtype=np.float64))


def expected_score_of_tokens(logprobs: Mapping[str, float], scores: Mapping[str, float]) -> float | None:
    """Compute the expected score from the likeliest first tokens of a judge's answer.

    Tokens that write the same score, with or without a space before it, count together. Scores that are not among the
    tokens count as impossible.

    Args:
        logprobs: Log-probability of each token, in nats.
        scores: What each score is worth.

    Returns:
        The mean; None if no token writes a score.

    Examples:
        >>> round(expected_score_of_tokens({"5": -0.693, " 1": -0.693, "The": -9.0}, {"1": 1.0, "5": 5.0}), 3)
        3.0
    """
    entries = [(logprob, scores[token.strip()]) for token, logprob in logprobs.items() if token.strip() in scores]
    return expected_score(*zip(*entries, strict=True)) if entries else None
