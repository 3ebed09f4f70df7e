"""What can go wrong, as types.

InfAlignError
├── InvalidValue            a value that is not accepted (also a ValueError)
├── NotConverged            a numerical solution was not found, or did not pass its check
├── EngineFailed            what draws responses offline did not start, died, or failed at a draw
├── TooLittleMemory         what is to be run does not fit into the memory there is
├── DiskFull                there is no room for what is to be written
├── TemplateRefusal         a chat template does not accept a conversation
└── BundleError             a bundle that must not be used
    ├── BundleMissing       there is no bundle, or a part of it is missing
    ├── BundleCorrupt       a file differs from what was written
    ├── BundleMismatch      parts that were not made for each other, or another format
    ├── BundleUnsafe        weights that can run code when they are read
    └── RewardMismatch      its reward models, as they run here, give other rewards than it was calibrated with
"""


def one_line(error: BaseException, limit: int | None = 200) -> str:
    """What a library's error says, in one line of at most ``limit`` characters; its name where it says nothing."""
    return " ".join(str(error).split())[:limit] or repr(error)


def shorten(value: object, limit: int = 200) -> str:
    """How a value is written in code, at most ``limit`` characters of it."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "…"


class InfAlignError(Exception):
    """Base of every error this project raises on purpose; its text is one line a user can act on."""


class InvalidValue(InfAlignError, ValueError):
    """A value that is not accepted.

    ``param`` names the field, flag or key; the text says what came and what is accepted.
    """

    def __init__(self, param: str, given: object, accepted: str) -> None:
        super().__init__(f"{param}: got {shorten(given)}, accepted: {accepted}")
        self.param = param


class DiskFull(InfAlignError):
    """There is no room for what is to be written."""


class TooLittleMemory(InfAlignError):
    """What is to be run does not fit into the memory there is."""


class NotConverged(InfAlignError):
    """A numerical solution was not found, or did not pass its check."""


class EngineFailed(InfAlignError):
    """What draws responses offline did not start, died, or failed at a draw."""


class TemplateRefusal(InfAlignError):
    """A chat template does not accept a conversation; the text is the template's reason."""


class BundleError(InfAlignError):
    """A bundle that must not be used."""


class BundleMissing(BundleError):
    """There is no bundle at the path, or a part of it is missing."""


class BundleCorrupt(BundleError):
    """A file of the bundle differs from what was written."""


class BundleMismatch(BundleError):
    """Parts of the bundle were not made for each other, or the format is another."""


class BundleUnsafe(BundleError):
    """Weights in a format that can run code when it is read."""


class RewardMismatch(BundleError):
    """The reward models, as they run here, give other rewards than the bundle was calibrated with."""
