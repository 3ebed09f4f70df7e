"""What can go wrong between the workbench and a server.

InfAlignError
└── WorkbenchError
    ├── AccessDenied        the server does not accept the key, or the key may not do this
    ├── ServerGone          the server has not answered for longer than the user waits
    ├── RequestFailed       a request failed; the same request may succeed later
    │   ├── Busy            the server, or the key, has as many requests as it takes
    │   └── Unreachable     no server answered, or it broke off
    ├── RequestRefused      the server will never accept this request
    └── StoreMismatch       a folder was made with other settings, is damaged, or is in use
"""

from infalign.errors import InfAlignError


class WorkbenchError(InfAlignError):
    """The base class of the workbench's errors."""


class AccessDenied(WorkbenchError):
    """The server does not accept the key, or the key may not do this."""


class ServerGone(WorkbenchError):
    """The server has not answered for longer than the user waits."""


class RequestFailed(WorkbenchError):
    """A request failed. The same request may succeed later.

    Args:
        code: The server's code for it, or what happened.
        message: What the server said.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Busy(RequestFailed):
    """The server, or the key, has as many requests as it takes.

    Args:
        message: What the server said.
        retry_after: Seconds after which the request may be sent again.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__("overloaded", message)
        self.retry_after = retry_after


class Unreachable(RequestFailed):
    """No server answered, or it broke off.

    Args:
        message: What happened.
    """

    def __init__(self, message: str) -> None:
        super().__init__("unreachable", message)


class RequestRefused(WorkbenchError):
    """The server will never accept this request.

    Args:
        code: The server's code for it.
        message: What the server said.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class StoreMismatch(WorkbenchError):
    """A folder was made with other settings, is damaged, or is in use."""
