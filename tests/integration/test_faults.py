"""What goes wrong in production, on the real engines; after each the server answers a normal request correctly."""

import asyncio
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from infalign import Bundle
from tests.faults import ASKED, LONG, busiest, selected
from tests.integration.conftest import READY_WITHIN, Running, launched, wait_until


@pytest.fixture(scope="module")
def running(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that nobody else uses, started once for the faults that it survives; the last test ends it."""
    options = ("--max-requests", "64", "--drain", "60")
    with launched(tmp_path_factory.mktemp("faults") / "log", str(bundle.path), *options) as running:
        yield running


@pytest.fixture(scope="module")
def expected(running: Running) -> Any:
    """The answer to a normal request while nothing is wrong."""
    return selected(running)


@pytest.fixture(autouse=True)
def unharmed(running: Running, expected: Any) -> Iterator[None]:
    """After each fault: ready, nothing running, the same answer as before, no more memory."""
    before = memory(running)
    yield
    if running.process.poll() == 0:  # by the last test
        return
    wait_until(lambda: running.ready)
    wait_until(lambda: running.metric("vllm:num_requests_running") == 0)
    assert running.metric("infalign_requests_in_flight") == 0
    assert selected(running) == expected
    assert memory(running) < 1.05 * before


def memory(running: Running) -> float:
    """Resident bytes of the server and its engines."""
    return running.metric("infalign_resident_memory_bytes")


@pytest.mark.parametrize("victim", ["policy", "reward"])
def test_an_engine_killed_during_best_of_16(running: Running, victim: str) -> None:
    failures = running.metric("infalign_engine_failures_total")
    with ThreadPoolExecutor() as threads:
        answer = threads.submit(httpx.post, f"{running.url}/v1/best-of-n", json=LONG, timeout=READY_WITHIN)
        wait_until(lambda: running.metric("vllm:num_requests_running") == 16)
        policy, others = busiest(running)
        (policy if victim == "policy" else others[0]).kill()
        assert answer.result().status_code == 503
    wait_until(lambda: running.metric("infalign_engine_failures_total") == failures + 1)
    wait_until(lambda: running.ready)
    assert len(running.engines) == 2


def test_fifty_clients_that_leave_halfway(running: Running) -> None:
    async def leave(client: httpx.AsyncClient, place: int) -> None:
        body = LONG | {"n": 2, "seed": place, "stream": place % 2 == 0}
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"{running.url}/v1/best-of-n", json=body, timeout=httpx.Timeout(60, read=2))

    async def all_leave() -> None:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=None)) as client:
            await asyncio.gather(*(leave(client, place) for place in range(50)))

    aborted = running.metric("infalign_aborted_candidates_total")
    asyncio.run(all_leave())
    wait_until(lambda: running.metric("infalign_aborted_candidates_total") == aborted + 100, 5)
    wait_until(lambda: running.metric("vllm:num_requests_running") == 0, 5)


def test_a_prompt_of_the_maximum_length(running: Running, bundle: Bundle) -> None:
    from transformers import AutoConfig, AutoTokenizer

    context = AutoConfig.from_pretrained(bundle.reference).max_position_embeddings
    tokenizer = AutoTokenizer.from_pretrained(bundle.reference)
    words = " a" * context
    while len(tokenizer(words)["input_ids"]) > context - 9:
        words = words[:-2]
    # the reward model reads one more: the end token
    fits = {"prompt": words, "n": 2, "max_tokens": context - 1 - len(tokenizer(words)["input_ids"])}
    assert httpx.post(f"{running.url}/v1/best-of-n", json=fits, timeout=120).status_code == 200
    over = httpx.post(f"{running.url}/v1/best-of-n", json=fits | {"max_tokens": fits["max_tokens"] + 1}, timeout=120)
    assert (over.status_code, over.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_more_requests_at_once_than_are_admitted(running: Running) -> None:
    async def burst() -> list[int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(limits=limits, timeout=300) as client:
            body = {"messages": ASKED, "n": 1, "max_tokens": 4}
            answers = await asyncio.gather(
                *(client.post(f"{running.url}/v1/best-of-n", json=body) for _ in range(1000))
            )
            assert all("retry-after" in answer.headers for answer in answers if answer.status_code == 429)
            return [answer.status_code for answer in answers]

    codes = asyncio.run(burst())
    assert set(codes) == {200, 429}
    assert codes.count(200) >= 64


def test_sigterm_under_load_answers_what_was_asked(running: Running) -> None:
    body = LONG | {"n": 4, "max_tokens": 200, "min_tokens": 200}
    with ThreadPoolExecutor(8) as threads:
        url = f"{running.url}/v1/best-of-n"
        whole = [threads.submit(httpx.post, url, json=body, timeout=120) for _ in range(4)]
        streams = [threads.submit(httpx.post, url, json=body | {"stream": True}, timeout=120) for _ in range(4)]
        wait_until(lambda: running.metric("infalign_requests_in_flight") == 8)
        running.process.send_signal(signal.SIGTERM)
        assert [one.result().status_code for one in whole] == [200] * 4
        assert all("event: answer" in one.result().text for one in streams)
        assert running.process.wait(60) == 0
