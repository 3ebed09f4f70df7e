"""The engines in memory refuse what real ones refuse, so that no test passes on what a real server could not do."""

from dataclasses import replace
from pathlib import Path

import pytest

from server.engines import EnginesDown, Refused, RequestFailed, Sampling, Structure
from tests.fakes import FakeEngines

pytestmark = pytest.mark.anyio
SAMPLING = Sampling(temperature=1.0, top_p=1.0, top_k=0, max_tokens=4, seed=1, policy="fake")


@pytest.mark.parametrize("state", ["not started", "stopped"])
async def test_engines_that_are_not_up_do_nothing(state: str) -> None:
    engines = FakeEngines()
    if state == "stopped":
        await engines.start()
        engines.stop()
    for work in (
        engines.generate([1], SAMPLING),
        engines.score([[1]]),
        engines.check_structure(Structure("json_object")),
        engines.load("policy", Path("adapter")),
        engines.check(),
    ):
        with pytest.raises(EnginesDown):
            await work


async def test_what_does_not_fit_the_context_is_refused() -> None:
    engines = FakeEngines(context=8)
    await engines.start()
    assert (await engines.generate([1] * 4, SAMPLING)).text == "answer 1"
    for prompt, sampling in (([1] * 5, SAMPLING), ([1] * 4, replace(SAMPLING, max_tokens=5)), ([], SAMPLING)):
        with pytest.raises(Refused):
            await engines.generate(prompt, sampling)
    assert len(await engines.score([[1] * 8, [1] * 8])) == 2
    for tokens in ([[1] * 9], [[1] * 8, [1] * 9], [[]], []):
        with pytest.raises(RequestFailed):
            await engines.score(tokens)
