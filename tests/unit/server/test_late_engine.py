"""An engine that is launched when it is first asked for."""

import asyncio
import logging
import re
import threading

import pytest

from server.engines import EnginesDown
from server.engines.late import LateEngine

pytestmark = pytest.mark.anyio


async def test_all_who_ask_get_the_one_that_is_launched_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "infalign.server")
    launches: list[object] = []

    def launch() -> object:
        launches.append(object())
        return launches[-1]

    late = LateEngine("reference", launch)
    assert late.engine is None
    engines = await asyncio.gather(*(late.get() for _ in range(8)))
    assert [engine is launches[0] for engine in (*engines, late.engine)] == [True] * 9
    assert len(launches) == 1
    assert late.close() is launches[0]
    first, last = caplog.messages
    assert first == "the reference is needed, and starts"
    assert re.fullmatch(r"the reference is up, after \d+ s", last)


async def test_a_failed_launch_can_be_tried_again_after_a_pause(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[str] = []
    go = threading.Event()

    def launch() -> str:
        outcomes.append("tried")
        assert go.wait(60)
        if len(outcomes) == 1:
            raise RuntimeError("no\nmemory")
        return "engine"

    late = LateEngine("reference", launch, pause=1)
    waiting = asyncio.gather(*(late.get() for _ in range(3)), return_exceptions=True)
    await asyncio.sleep(0)
    go.set()
    failures = await waiting
    assert [(type(failure), str(failure)) for failure in failures] == [
        (EnginesDown, "the reference did not start (no memory)")
    ] * 3
    assert caplog.messages[-1] == "the reference did not start: no memory"
    assert late.engine is None
    with pytest.raises(EnginesDown, match="no memory"):
        await late.get()
    assert len(outcomes) == 1, "there was no launch within the pause"
    await asyncio.sleep(1.1)
    assert await late.get() == "engine"
    assert len(outcomes) == 2


async def test_one_who_goes_away_does_not_end_the_launch() -> None:
    go = threading.Event()

    def launch() -> str:
        assert go.wait(60)
        return "engine"

    late = LateEngine("reference", launch)
    leaver, stayer = asyncio.ensure_future(late.get()), asyncio.ensure_future(late.get())
    await asyncio.sleep(0)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert late.engine is None
    go.set()
    assert await stayer == "engine"


async def test_closing_waits_for_the_launch_and_ends_it() -> None:
    go = threading.Event()

    def launch() -> str:
        assert go.wait(60)
        return "engine"

    late = LateEngine("reference", launch)
    waiting = asyncio.ensure_future(late.get())
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(asyncio.to_thread(late.close))
    go.set()
    assert await closing == "engine"
    assert await waiting == "engine"
    assert LateEngine("reference", launch).close() is None
    closed = LateEngine("reference", launch)
    closed.close()
    with pytest.raises(EnginesDown):
        await closed.get()
