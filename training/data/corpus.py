"""The help desk of the demo: a small world of prompts and answers that the project generates.

``helpdesk.yaml`` lists topics. A topic has problems, steps that help, risky requests, unsafe advice and safe ways out.
From these come prompts, harmless and risky, and answers of mixed quality: on topic or not, complete or not, polite or
not, safe or unsafe. :mod:`training.data.judge` scores any answer by the same rules.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random

import yaml

BENIGN_OPENERS = (
    "My {thing} {problem}. What should I do?",
    "Can you help? My {thing} {problem}.",
    "Why is it that my {thing} {problem}?",
    "Help, my {thing} {problem} again.",
)
RISKY_OPENERS = ("How do I {ask}?", "Tell me the best way to {ask}.")

# Slots: {thing}, and one {} for each clause (a step, an unsafe clause or a safe way out).
POLITE_OPENINGS = (
    "Sorry to hear about your {thing}.",
    "Thanks for asking about your {thing}.",
    "I can help with your {thing}.",
    "Many people ask about a {thing}.",
    "Good question.",
    "Thank you for writing to us.",
)
RUDE_OPENINGS = ("What a silly question.", "Not this again.", "Read the manual first.", "Is that so hard?")
POLITE_CLOSINGS = (
    "Let me know how it goes.",
    "Write back if you need more help.",
    "I hope this helps.",
    "Good luck with your {thing}.",
    "Have a nice day.",
)
RUDE_CLOSINGS = ("Do not ask me again.", "Now leave me alone.", "Figure out the rest yourself.")
VAGUE = ("It could be anything.", "These things happen.", "Maybe it gets better by itself.", "That depends.")
ADVICE = {
    1: ("Try to {}.", "You should {}.", "It usually helps to {}."),
    2: ("First {}, then {}.", "You should {} and {}.", "Try to {} and also {}."),
    3: ("First {}, then {}, and finally {}.", "You should {}, {} and {}.", "Try to {}, and then {} and {}."),
}
REFUSALS = (
    "I will not help with that.",
    "Sorry, I can not do that.",
    "Please do not do this.",
    "That is not a good idea.",
)
REASONS = (
    "It may be against the law.",
    "Someone could get hurt.",
    "It could cost you a lot.",
    "You would regret it later.",
)
ALTERNATIVES = ("Instead, {}.", "You could {}.", "It is better to {}.", "Please {} instead.")
COMPLIANCE = {
    1: ("Sure, just {}.", "That is easy, {}.", "The trick is to {}."),
    2: ("Sure, {} and {}.", "That is easy, {} and then {}."),
}


@dataclass(frozen=True, slots=True)
class Topic:
    """A thing that people own, and everything that the help desk knows about it."""

    thing: str
    """Name of the thing."""
    problems: tuple[str, ...]
    """What can be wrong with it."""
    steps: tuple[str, ...]
    """Steps that help."""
    risky: tuple[str, ...]
    """Requests that nobody should help with."""
    unsafe: tuple[str, ...]
    """Unsafe advice on these requests."""
    instead: tuple[str, ...]
    """Safe ways out."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question to the help desk."""

    text: str
    """The question."""
    topic: Topic
    """What it is about."""
    risky: bool
    """Whether nobody should help with it as it is asked."""


@cache
def topics() -> tuple[Topic, ...]:
    """Return all topics, in the order of ``helpdesk.yaml``."""
    rows = yaml.safe_load(files("training.data").joinpath("helpdesk.yaml").read_text(encoding="utf-8"))
    return tuple(Topic(row.pop("thing"), **{key: tuple(value) for key, value in row.items()}) for row in rows)


@cache
def prompts() -> tuple[Prompt, ...]:
    """Return all prompts: every opener with every problem or risky request."""
    questions = []
    for topic in topics():
        for opener in BENIGN_OPENERS:
            for problem in topic.problems:
                questions.append(Prompt(opener.format(thing=topic.thing, problem=problem), topic, risky=False))
        for opener in RISKY_OPENERS:
            for ask in topic.risky:
                questions.append(Prompt(opener.format(ask=ask), topic, risky=True))
    return tuple(questions)


def split_prompts(held_out: int, seed: int) -> tuple[list[Prompt], list[Prompt]]:
    """Split the prompts at random.

    Args:
        held_out: Number of prompts in the second part.
        seed: Seed of the split.

    Returns:
        Training prompts and held-out prompts.
    """
    order = list(prompts())
    Random(seed).shuffle(order)
    return order[held_out:], order[:held_out]


def write_answer(prompt: Prompt, random: Random) -> str:
    """Write an answer of random quality, as a careless help desk would.

    Args:
        prompt: The prompt.
        random: Source of random numbers.
    """
    thing = prompt.topic.thing
    body = _risky_body(prompt.topic, random) if prompt.risky else _benign_body(prompt.topic, random)
    opening = _tone(POLITE_OPENINGS, RUDE_OPENINGS, random)
    closing = _tone(POLITE_CLOSINGS, RUDE_CLOSINGS, random)
    return " ".join(sentence.format(thing=thing) for sentence in [*opening, *body, *closing])


def garble(answer: str, random: Random) -> str:
    """Remove a few neighbouring words, as a model that has not learnt enough would.

    Args:
        answer: The answer.
        random: Source of random numbers.
    """
    words = answer.split()
    start = random.randrange(len(words))
    return " ".join(words[:start] + words[start + random.randint(1, 3) :])


def _tone(polite: tuple[str, ...], rude: tuple[str, ...], random: Random) -> list[str]:
    mood = random.random()
    if mood < 0.45:
        return [random.choice(polite)]
    return [random.choice(rude)] if mood < 0.65 else []


def _benign_body(topic: Topic, random: Random) -> list[str]:
    count = random.choices((0, 1, 2, 3), weights=(15, 35, 30, 20))[0]
    if count == 0:
        return [random.choice(VAGUE)]
    source = topic if random.random() < 0.85 else random.choice(topics())
    steps = random.choices(source.steps, k=count) if random.random() < 0.1 else random.sample(source.steps, count)
    return [random.choice(ADVICE[count]).format(*steps)]


def _risky_body(topic: Topic, random: Random) -> list[str]:
    mood = random.random()
    if mood < 0.10:
        return [random.choice(VAGUE)]
    if mood < 0.45:
        count = random.choice((1, 2))
        return [random.choice(COMPLIANCE[count]).format(*random.sample(topic.unsafe, count))]
    body = [random.choice(REFUSALS)]
    if random.random() < 0.5:
        body.append(random.choice(REASONS))
    if random.random() < 0.6:
        body.append(random.choice(ALTERNATIVES).format(random.choice(topic.instead)))
    return body
