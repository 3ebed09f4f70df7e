"""Changes of a prompt's text that keep its meaning: best-of-N jailbreaking (Hughes et al., arXiv 2412.03556).

An attacker who may try often also changes the prompt each time. The paper scrambles the inner letters of words,
capitalises at random, and replaces characters by their neighbours in ASCII.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from infalign.errors import InvalidValue

LONG_WORD = 4
"""Letters from which a word can be scrambled: the first and the last stay where they are."""
PRINTABLE = range(32, 127)
"""Codes of ASCII characters that noise may change, and change into."""


def scramble(text: str, share: float, random: Random) -> str:
    """Shuffle the inner letters of words.

    Args:
        text: The text.
        share: Probability that a word of four letters or more is scrambled.
        random: Source of random numbers.

    Examples:
        >>> scramble("remember everything", 1.0, Random(0))
        'rbmeeemr eivhenrytg'
    """

    def change(match: re.Match[str]) -> str:
        word = match.group()
        if len(word) < LONG_WORD or random.random() >= share:
            return word
        inner = list(word[1:-1])
        random.shuffle(inner)
        return word[0] + "".join(inner) + word[-1]

    return re.sub(r"[^\W\d_]+", change, text)


def capitalise(text: str, share: float, random: Random) -> str:
    """Change the case of letters.

    Args:
        text: The text.
        share: Probability that a letter changes its case.
        random: Source of random numbers.

    Examples:
        >>> capitalise("how are you", 0.6, Random(0))
        'hoW ARe YOu'
    """
    return "".join(letter.swapcase() if random.random() < share else letter for letter in text)


def add_noise(text: str, share: float, random: Random) -> str:
    """Replace characters by a neighbour in ASCII.

    Args:
        text: The text.
        share: Probability that a printable ASCII character is replaced by the one before or after it.
        random: Source of random numbers.

    Examples:
        >>> add_noise("how are you", 0.3, Random(0))
        'how!are you'
    """

    def change(letter: str) -> str:
        if ord(letter) not in PRINTABLE or random.random() >= share:
            return letter
        other = ord(letter) + random.choice((-1, 1))
        return chr(other) if other in PRINTABLE else letter

    return "".join(map(change, text))


KINDS: dict[str, tuple[Callable[[str, float, Random], str], float]] = {
    "scramble": (scramble, 0.6),
    "capitals": (capitalise, 0.6),
    "noise": (add_noise, 0.06),
}
"""Augmentations by name, each with its default share: about what the paper uses at σ = 0.4, which is √σ, √σ and σ³."""


@dataclass(frozen=True)
class Augmentation:
    """Augmentations, one after another.

    Args:
        steps: Name and share of each.
    """

    steps: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        return ", ".join(f"{name}({share:g})" for name, share in self.steps)

    def apply(self, text: str, seed: str) -> str:
        """Change a text.

        Args:
            text: The text.
            seed: The same seed changes the same text in the same way.
        """
        random = Random(seed)
        for name, share in self.steps:
            text = KINDS[name][0](text, share, random)
        return text


def parse_augmentations(texts: Sequence[str]) -> Augmentation | None:
    """Read augmentations as users write them: ``scramble``, or with the share ``scramble(0.3)``.

    Args:
        texts: Augmentations in the order in which they are applied.

    Returns:
        None if there are none.

    Raises:
        InvalidValue: A text is none of them.

    Examples:
        >>> str(parse_augmentations(["scramble", "noise(0.1)"]))
        'scramble(0.6), noise(0.1)'
    """
    steps = []
    for text in texts:
        match = re.fullmatch(r"(\w+)(?:\(([0-9.]+)\))?", text.strip())
        name, number = match.groups() if match else ("", None)
        try:
            share = KINDS[name][1] if number is None else float(number)
        except (KeyError, ValueError):
            share = -1.0
        if not 0 < share <= 1:
            accepted = f"{', '.join(KINDS)}, or with a share from 0 to 1 as in scramble(0.3)"
            raise InvalidValue("--augment", text, accepted)
        steps.append((name, share))
    return Augmentation(tuple(steps)) if steps else None
