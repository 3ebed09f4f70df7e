"""Engines in process over a client of vLLM's in memory: whether they can answer, and how they end."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.engines import EnginesDown, RequestFailed
from server.engines import vllm as module
from server.engines.engine import Engine
from server.engines.late import LateEngine
from server.engines.overrides import Overrides
from server.engines.plan import Plan
from server.engines.vllm import VllmEngines
from server.settings import Settings

pytestmark = pytest.mark.anyio
SOON = 60  # seconds, a bound against hanging


class FakeLLM:
    """What is asked of an AsyncLLM."""

    def __init__(self, alive: bool = True, on_shutdown: Callable[[], object] = lambda: None) -> None:
        self.model_config = SimpleNamespace(max_model_len=64)
        self.errored, self.alive, self.on_shutdown = False, alive, on_shutdown
        self.signs = 0
        self.shutdowns: list[float | None] = []

    async def is_sleeping(self) -> bool:
        await asyncio.sleep(0 if self.alive else 3600)
        self.signs += 1
        return False

    def shutdown(self, timeout: float | None = None) -> None:
        self.shutdowns.append(timeout)
        self.on_shutdown()


async def answer_never(engine: Engine) -> None:
    async with engine.call():
        await asyncio.Event().wait()


async def test_an_engine_without_a_sign_of_life_hangs_and_is_killed() -> None:
    llm = FakeLLM(alive=False)
    engine = Engine("policy", llm, silence=0.05)
    engine.check()
    with pytest.raises(EnginesDown, match=r"^the engine of the policy said nothing for 0\.05 s$"):
        await asyncio.wait_for(answer_never(engine), SOON)
    with pytest.raises(EnginesDown, match=r"^the engine of the policy hangs"):
        engine.check()
    with pytest.raises(EnginesDown, match="hangs"):
        await answer_never(engine)
    engine.stop()
    assert llm.shutdowns == [0]


async def test_an_engine_that_works_for_long_is_left_to_it() -> None:
    llm = FakeLLM()
    engine = Engine("policy", llm, silence=0.05)
    work = asyncio.create_task(answer_never(engine))
    while llm.signs < 30:
        await asyncio.sleep(0.01)
    assert not work.done()
    engine.check()
    engine.stop()
    assert llm.shutdowns == [None]
    with pytest.raises(EnginesDown, match=r"^the engine of the policy was stopped$"):
        await asyncio.wait_for(work, SOON)


async def test_a_dead_engine_is_told_from_one_that_fails_at_a_request() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    llm = FakeLLM()
    engine = Engine("policy", llm, SOON)

    async def fail(error: Exception, errored: bool) -> None:
        async with engine.call():
            llm.errored = errored
            raise error from RecursionError("text of a prompt")

    with pytest.raises(RequestFailed, match=r"failed at a request \(RecursionError\)$") as failed:
        await fail(EngineGenerateError(), errored=False)
    assert failed.value.internal
    with pytest.raises(EnginesDown, match="has died"):
        await fail(EngineDeadError(), errored=False)
    with pytest.raises(EnginesDown, match="has died"):
        await fail(EngineGenerateError(), errored=True)
    with pytest.raises(EnginesDown, match="has died"):
        await answer_never(engine)


@pytest.fixture
def engines(tmp_path: Path) -> VllmEngines:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    other = tmp_path / "reference"
    other.mkdir()
    (other / "config.json").write_text('{"max_position_embeddings": 64}')
    return VllmEngines(tmp_path, other, [tmp_path, tmp_path], Settings())


async def run_on(engines: VllmEngines, llms: list[FakeLLM]) -> None:
    """Let engines run that are launched on clients: policy, two reward models, and late reference and scorer."""
    policy, first, second, reference, scorer = (Engine("x", llm, SOON) for llm in llms)
    engines._policy, engines._rewards = policy, [first, second]
    engines._reference, engines._scorer = LateEngine("a", lambda: reference), LateEngine("b", lambda: scorer)
    await engines._reference.get()
    await engines._scorer.get()


def test_the_context_is_the_smallest_that_an_engine_has(tmp_path: Path) -> None:
    paths = []
    for name, positions in (("policy", 512), ("reference", 256), ("first", 128), ("second", 1024), ("scorer", 256)):
        paths.append(tmp_path / name)
        paths[-1].mkdir()
        (paths[-1] / "config.json").write_text(f'{{"max_position_embeddings": {positions}}}')
    policy, reference, *rewards, scorer = paths

    def context(own_reference: bool = True, own_scorer: bool = False, **overrides: Any) -> int:
        return VllmEngines(
            policy,
            reference if own_reference else policy,
            rewards,
            Settings(),
            overrides=Overrides(**overrides),
            scorer=scorer if own_scorer else None,
        ).context

    assert context() == 128
    assert context(rewards={"first": {"max_model_len": 1024}, "second": {}}) == 256
    assert context(rewards={"first": {"max_model_len": 1024}, "second": {}}, own_reference=False) == 512
    assert context(policy={"max_model_len": 64}) == 64
    assert context(own_scorer=True, scorer={"max_model_len": 32}) == 32
    assert context(policy={"max_model_len": -1}, reference={"max_model_len": None}) == 128


async def test_engines_stop_side_by_side(engines: VllmEngines) -> None:
    together = threading.Barrier(5)
    llms = [FakeLLM(on_shutdown=lambda: together.wait(SOON)) for _ in range(5)]
    await run_on(engines, llms)
    await engines.check()
    await asyncio.to_thread(engines.stop)
    assert [len(llm.shutdowns) >= 1 for llm in llms] == [True] * 5
    with pytest.raises(EnginesDown, match="not up"):
        await engines.check()


@pytest.mark.parametrize("sick", range(4))
async def test_every_engine_that_runs_all_the_time_is_checked(engines: VllmEngines, sick: int) -> None:
    llms = [FakeLLM() for _ in range(5)]
    await run_on(engines, llms)
    engines._reference_judges = True
    llms[sick].errored = True
    assert await engines.discard_failed() == []
    with pytest.raises(EnginesDown, match="has died"):
        await engines.check()


@pytest.mark.parametrize("sick", [3, 4])
@pytest.mark.parametrize("hangs", [False, True])
async def test_an_engine_that_started_when_it_was_needed_fails_alone(
    engines: VllmEngines, sick: int, hangs: bool
) -> None:
    llms = [FakeLLM() for _ in range(5)]
    await run_on(engines, llms)
    late = {3: engines._reference, 4: engines._scorer}[sick]
    assert late is not None
    failed = await late.get()
    llms[sick].errored, failed._watch.is_hung = not hangs, hangs
    await engines.check()
    [failure] = await engines.discard_failed()
    assert str(failure).startswith("the engine of the x hangs" if hangs else "the engine of the x has died")
    assert [llm.shutdowns for llm in llms] == [[0 if hangs else None] if place == sick else [] for place in range(5)]
    assert await engines.discard_failed() == []
    with pytest.raises(EnginesDown, match="died soon after its start"):
        await late.get()
    late._next_try = 0
    llms[sick].errored = False
    assert await late.get() is failed, "it is launched again"


async def test_a_launch_that_hangs_is_killed_when_the_server_stops(
    engines: VllmEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = threading.Event()

    def launch() -> Any:
        assert killed.wait(SOON)
        raise RuntimeError("killed")

    monkeypatch.setattr(module, "_kill_launching", killed.set)
    engines._policy = Engine("policy", FakeLLM(), SOON)
    engines._reference = LateEngine("reference", launch)
    waiting = asyncio.ensure_future(engines._reference.get())
    await asyncio.sleep(0)
    await asyncio.to_thread(engines.stop)
    with pytest.raises(EnginesDown, match="did not start"):
        await waiting


class FakeLaunch:
    """An engine that is launched by calling ``start`` with its role."""

    def __init__(self, role: str, start: Callable[[str], Any]) -> None:
        self.role, self.start = role, start

    def run(self, silence: float) -> Any:
        return self.start(self.role)


def launches(start: Callable[[str], Any]) -> Any:
    return [FakeLaunch(role, start) for role in ("policy", "one", "another")]


@pytest.mark.parametrize(("in_parallel", "most"), [(True, 3), (False, 1)])
async def test_on_a_gpu_engines_start_one_after_the_other(engines: VllmEngines, in_parallel: bool, most: int) -> None:
    running, counts = 0, []
    lock, all_running = threading.Lock(), threading.Barrier(most)

    def launch(role: str) -> Any:
        nonlocal running
        with lock:
            running += 1
            counts.append(running)
        all_running.wait(SOON)
        with lock:
            running -= 1
        return role

    assert await engines._launch_all(launches(launch), in_parallel) == ["policy", "one", "another"]
    assert max(counts) == most


async def test_on_a_gpu_no_engine_is_started_after_one_has_failed(engines: VllmEngines) -> None:
    roles = []

    def launch(role: str) -> Any:
        roles.append(role)
        if role == "one":
            raise MemoryError
        return role

    policy, failure = await engines._launch_all(launches(launch), in_parallel=False)
    assert policy == "policy"  # type: ignore[comparison-overlap]
    assert isinstance(failure, MemoryError)
    assert roles == ["policy", "one"]


async def test_a_start_that_hangs_is_killed_when_it_is_given_up(
    engines: VllmEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    launching, killed = threading.Event(), threading.Event()

    def launch(*_: Any) -> Any:
        launching.set()
        assert killed.wait(SOON)
        raise RuntimeError("killed")

    monkeypatch.setattr(module, "_kill_launching", killed.set)
    monkeypatch.setattr(Plan, "prepare", lambda *_: launches(launch))
    starting = asyncio.create_task(engines.start())
    await asyncio.to_thread(launching.wait, 600)  # imports of vLLM come first
    assert not killed.is_set()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(starting, SOON)
    assert killed.is_set()


@pytest.mark.parametrize("fails", [False, True])
async def test_the_reference_starts_with_the_others_if_it_judges(
    engines: VllmEngines, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    llms = {role: FakeLLM() for role in ("policy", "one", "another", "reference")}

    def launch(role: str) -> Any:
        if fails and role == "reference":
            raise MemoryError("too little")
        return Engine(role, llms[role], SOON)

    monkeypatch.setattr("vllm.utils.gc_utils.freeze_gc_heap", lambda: None)
    monkeypatch.setattr(Plan, "prepare", lambda *_: launches(launch))
    monkeypatch.setattr(VllmEngines, "_launch", lambda *_: launch("reference"))
    engines._reference_judges = True
    if fails:
        with pytest.raises(EnginesDown, match=r"the reference did not start .*too little"):
            await engines.start()
        assert [len(llms[role].shutdowns) for role in ("policy", "one", "another")] == [1, 1, 1]
    else:
        await engines.start()
        assert engines._reference is not None
        assert engines._reference.engine.role == "reference"
        await asyncio.to_thread(engines.stop)
