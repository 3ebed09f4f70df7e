"""The errors that this project raises on purpose.

InfAlignError
├── InvalidValue            a value is not accepted (also a ValueError)
├── NotConverged            a numerical solution was not found, or failed its check
├── EngineFailed            an engine did not start, or one that draws responses offline died or failed
├── TooLittleMemory         a job does not fit into the memory of the machine
├── DiskFull                the disk has no room for a file
├── TemplateRefusal         a chat template does not accept a conversation
└── BundleError             a bundle must not be used
    ├── BundleMissing       the bundle, or a part of it, does not exist
    ├── BundleCorrupt       a file differs from what was written
    ├── BundleMismatch      the parts were not made for each other, or the format differs
    ├── BundleUnsafe        the weights are in a format that can run code
    └── RewardMismatch      the reward models give other rewards than at calibration
"""


def one_line(error: BaseException, limit: int | None = 200) -> str:
    """Put the message of an error on one line.

    Args:
        error: An error of any library.
        limit: Largest number of characters to keep; None keeps them all.

    Returns:
        The message with runs of whitespace replaced by one space, or the repr of the error if it has no message.
    """
    return " ".join(str(error).split())[:limit] or repr(error)


def truncate(text: str, limit: int = 80) -> str:
    """Cut a long text and mark the cut with an ellipsis.

    Args:
        text: The text.
        limit: Largest number of characters to keep.

    Returns:
        The text itself if it is short enough, else its first ``limit`` characters and ``…``.
    """
    return text if len(text) <= limit else text[:limit] + "…"


def shorten(value: object, limit: int = 200) -> str:
    """Write a value as Python code, cut to a length that fits into a message.

    Args:
        value: Any value.
        limit: Largest number of characters of its repr to keep.

    Returns:
        The repr, with an ellipsis if it was cut.
    """
    return truncate(repr(value), limit)


class InfAlignError(Exception):
    """The base class of every error that this project raises on purpose.

    The message is one line that a user can act on. Catch this class to handle all of them.

    Examples:
        >>> import infalign
        >>> try:
        ...     infalign.BestOfN(0)
        ... except infalign.InfAlignError as error:
        ...     print(error)
        n: got 0, accepted: a whole number of at least 1
    """


class InvalidValue(InfAlignError, ValueError):
    """A value is not accepted.

    The message names the parameter, the value and what is accepted.

    Args:
        param: Name of the argument, field, flag or key; kept as the attribute ``param``.
        value: The refused value.
        requirement: What would be accepted, in words; kept as the attribute ``requirement``.

    Examples:
        >>> from infalign import InvalidValue
        >>> str(InvalidValue("level", 1.5, "a number between 0 and 1"))
        'level: got 1.5, accepted: a number between 0 and 1'
    """

    def __init__(self, param: str, value: object, requirement: str) -> None:
        super().__init__(f"{param}: got {shorten(value)}, accepted: {requirement}")
        self.param, self.requirement = param, requirement


class DiskFull(InfAlignError):
    """The disk has no room for a file that is to be written."""


class TooLittleMemory(InfAlignError):
    """A job does not fit into the memory of the machine."""


class NotConverged(InfAlignError):
    """A numerical solution was not found, or failed its check.

    Examples:
        >>> from infalign import BestOfN, NotConverged, optimal
        >>> try:
        ...     optimal(BestOfN(4), beta=1e-300)
        ... except NotConverged as error:
        ...     print(error)
        optimal: no solution for best-of-4 at kl None, beta 1e-300 holds in floating point
    """


class Diverged(InfAlignError):
    """Training has diverged. The message names the step, the last checkpoint and what helps."""


class EngineFailed(InfAlignError):
    """An engine did not start, or one that draws responses offline died or failed during a draw."""


class TemplateRefusal(InfAlignError):
    """A chat template does not accept a conversation. The message is the reason that the template gives."""


class BundleError(InfAlignError):
    """A bundle must not be used. The subclasses in :mod:`infalign.errors` say why.

    Examples:
        >>> from pathlib import Path
        >>> from infalign import BundleError, read_bundle
        >>> try:
        ...     read_bundle(Path("no-such-bundle"))
        ... except BundleError as error:
        ...     print(type(error).__name__)
        BundleMissing
    """


class BundleMissing(BundleError):
    """The bundle, or a part of it, does not exist."""


class BundleCorrupt(BundleError):
    """A file of the bundle differs from what was written."""


class BundleMismatch(BundleError):
    """The parts of the bundle were not made for each other, or its format is not the one this version reads."""


class BundleUnsafe(BundleError):
    """The bundle has weights in a format that can run code when it is read."""


class RewardMismatch(BundleError):
    """The reward models give other rewards on this machine than at calibration."""
