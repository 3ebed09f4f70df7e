"""One vLLM engine in process: the client here, and the process that it asks."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from server.engines.base import EnginesDown, RequestFailed
from server.engines.watch import NoAnswer, Watch

SERVER_PID = "INFALIGN_SERVER_PID"
"""Environment variable by which engine processes know whose they are."""


class Engine:
    """An AsyncLLM, and whether it can answer.

    It is asked for a sign of life while it owes answers, since one that draws long responses or compiles a grammar has
    no output for a while. It gives one between any two of its steps.

    Args:
        role: what it is, for the operator.
        llm: the AsyncLLM.
        silence: seconds that it may say nothing while it owes answers, before it is taken for hung.
    """

    def __init__(self, role: str, llm: Any, silence: float) -> None:
        self.role, self._llm = role, llm
        self._watch = Watch(silence, self._ask)
        self._sign: asyncio.Task[None] | None = None

    def check(self) -> None:
        """Raise EnginesDown unless it can answer."""
        if self._llm.errored:
            raise EnginesDown(f"the engine of the {self.role} has died")
        if self._watch.hung:
            raise EnginesDown(f"the engine of the {self.role} hangs: it said nothing for {self._watch.silence:g} s")

    @asynccontextmanager
    async def call(self) -> AsyncIterator[Any]:
        """The AsyncLLM, for one call.

        Raises:
            EnginesDown: the engine is dead or hung, or becomes so before it has answered.
            RequestFailed: it lives, but failed at the call.
            VLLMClientError: it does not accept the request.
        """
        from vllm.exceptions import VLLMServerError
        from vllm.v1.engine.exceptions import EngineDeadError

        self.check()
        try:
            async with self._watch.call():
                yield self._llm
        except NoAnswer as error:
            raise EnginesDown(f"the engine of the {self.role} {error}") from error
        except EngineDeadError as error:
            raise EnginesDown(f"the engine of the {self.role} has died") from error
        except VLLMServerError as error:
            self.check()
            cause = type(error.__cause__ or error).__name__  # its text may quote the prompt
            raise RequestFailed(
                f"the engine of the {self.role} failed at a request ({cause})", internal=True
            ) from error

    def heard(self) -> None:
        """Note that something came from it."""
        self._watch.heard()

    def stop(self) -> None:
        """End its calls and its process. Blocks until the process has ended, for some seconds at most."""
        self._watch.stop()
        if self._sign is not None and not (loop := self._sign.get_loop()).is_closed():
            loop.call_soon_threadsafe(self._sign.cancel)  # a dead engine would never answer it
        # A hung process would not react to SIGTERM; without time to do so it gets SIGKILL.
        self._llm.shutdown(timeout=0 if self._watch.hung else None)
        # Its finaliser shuts down once more at exit, with the interpreter half gone, and prints a stack trace.
        type(self._llm).__del__ = lambda _: None

    def _ask(self) -> None:
        if self._sign is None or self._sign.done():
            self._sign = asyncio.create_task(self._sign_of_life())

    async def _sign_of_life(self) -> None:
        with suppress(Exception):  # whatever it is, it is no sign
            await self._llm.is_sleeping()
            self._watch.heard()
