"""What can go wrong, as types.

InfAlignError
├── InvalidValue            a value that is not accepted (also a ValueError)
├── NotConverged            a numerical solution was not found, or did not pass its check
├── EngineFailed            what draws responses offline did not start, died, or failed at a draw
├── DiskFull                there is no room for what is to be written
└── BundleError             a bundle that must not be used
    ├── BundleMissing       there is no bundle, or a part of it is missing
    ├── BundleCorrupt       a file differs from what was written
    └── BundleMismatch      parts that were not made for each other, or another format
"""


def one_line(error: BaseException, limit: int | None = 200) -> str:
    """What a library's error says, in one line of at most ``limit`` characters; its name where it says nothing."""
    return " ".join(str(error).split())[:limit] or repr(error)


class InfAlignError(Exception):
    """Base of every error this project raises on purpose; its text is one line a user can act on."""


class InvalidValue(InfAlignError, ValueError):
    """A value that is not accepted.

    ``param`` names the field, flag or key; the text says what came and what is accepted.
    """

    def __init__(self, param: str, given: object, accepted: str) -> None:
        super().__init__(f"{param}: got {given!r}, accepted: {accepted}")
        self.param = param


class DiskFull(InfAlignError):
    """There is no room for what is to be written."""


class NotConverged(InfAlignError):
    """A numerical solution was not found, or did not pass its check."""


class EngineFailed(InfAlignError):
    """What draws responses offline did not start, died, or failed at a draw."""


class BundleError(InfAlignError):
    """A bundle that must not be used."""


class BundleMissing(BundleError):
    """There is no bundle at the path, or a part of it is missing."""


class BundleCorrupt(BundleError):
    """A file of the bundle differs from what was written."""


class BundleMismatch(BundleError):
    """Parts of the bundle were not made for each other, or the format is another."""
