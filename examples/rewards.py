"""Functions that serve as rewards: `infalign serve --policy MODEL --reward function:examples.rewards:reading_ease`.

A function gets a batch, the conversations and a response to each, and returns a number for each. It runs in a process
of its own. Only the order of the numbers within a prompt matters, since rewards are calibrated.
"""

import re

VOWELS = re.compile(r"[aeiouy]+")
SENTENCES = re.compile(r"[.!?]+(?:\s|$)")
WORDS = re.compile(r"[a-z']+")


def reading_ease(prompts: list[list[dict[str, str]]], responses: list[str]) -> list[float]:
    """Score how easy responses are to read, by Flesch's formula (J. Appl. Psychol. 32, 1948).

    Short sentences of short words score high: 60 to 70 is plain English, below 30 is hard.

    Args:
        prompts: Conversations, each a list of messages.
        responses: A response to each of them.

    Returns:
        A score for each response; -100 for one without a word.

    Example:
        >>> easy, hard = "The cat sat on the mat.", "Notwithstanding considerable institutional heterogeneity,"
        >>> [round(score) for score in reading_ease([[], []], [easy, hard])]
        [116, -199]
    """
    return [_reading_ease(response) for response in responses]


def _reading_ease(text: str) -> float:
    words = WORDS.findall(text.lower())
    if not words:
        return -100.0
    sentences = max(1, len(SENTENCES.findall(text)))
    syllables = sum(max(1, len(VOWELS.findall(word)) - word.endswith("e")) for word in words)
    return 206.835 - 1.015 * len(words) / sentences - 84.6 * syllables / len(words)
