"""One vLLM engine of this process: vLLM's AsyncLLM with a watch over it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from server.engines.base import EnginesDown, RequestFailed
from server.engines.watch import NoAnswer, Watch

SERVER_PID = "INFALIGN_SERVER_PID"
"""Environment variable that tells engine processes the process id of their server."""


class Engine:
    """One AsyncLLM, with a watch that notices when it hangs.

    While the engine has requests to answer, it is asked for a sign of life from time to time. Its outputs alone would
    not do: an engine that computes a long step or compiles a grammar has none for a while.

    Args:
        role: What the engine is for, such as "policy". Errors name it.
        llm: The AsyncLLM.
        silence: Seconds without a sign of life after which a busy engine counts as hung.
    """

    def __init__(self, role: str, llm: Any, silence: float) -> None:
        self.role, self._llm = role, llm
        self._watch = Watch(silence, self._request_sign)
        self._sign_task: asyncio.Task[None] | None = None

    @property
    def context(self) -> int:
        """Largest length of prompt and response together, in tokens."""
        return int(self._llm.model_config.max_model_len)

    def check(self) -> None:
        """Check that the engine can answer.

        Raises:
            EnginesDown: The engine has died or hangs.
        """
        if self._llm.errored:
            raise EnginesDown(f"the engine of the {self.role} has died")
        if self._watch.is_hung:
            raise EnginesDown(f"the engine of the {self.role} hangs: it said nothing for {self._watch.silence:g} s")

    @asynccontextmanager
    async def call(self) -> AsyncIterator[Any]:
        """Open a call to the engine. The ``async with`` block gets the AsyncLLM.

        Raises:
            EnginesDown: The engine is dead or hung, or becomes so during the call.
            RequestFailed: The engine is alive but failed at the call.
            VLLMClientError: The engine does not accept the request.
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
            cause = type(error.__cause__ or error).__name__  # the error's text may quote the prompt
            raise RequestFailed(
                f"the engine of the {self.role} failed at a request ({cause})", internal=True
            ) from error

    def note_output(self) -> None:
        """Note that the engine has given an output."""
        self._watch.note_output()

    def stop(self) -> None:
        """End the engine's calls and its process. Blocks until the process has ended, a few seconds at most."""
        self._watch.stop()
        if self._sign_task is not None and not (loop := self._sign_task.get_loop()).is_closed():
            loop.call_soon_threadsafe(self._sign_task.cancel)  # a dead engine would never answer
        # A hung process does not react to SIGTERM. With a timeout of 0, vLLM sends SIGKILL at once.
        self._llm.shutdown(timeout=0 if self._watch.is_hung else None)
        # AsyncLLM's finalizer would shut down again while the interpreter exits, and print a stack trace.
        type(self._llm).__del__ = lambda _: None

    def _request_sign(self) -> None:
        if self._sign_task is None or self._sign_task.done():
            self._sign_task = asyncio.create_task(self._await_sign())

    async def _await_sign(self) -> None:
        with suppress(Exception):  # any error means that there is no sign of life
            await self._llm.is_sleeping()
            self._watch.note_output()
