"""Reward models are tried before anybody is answered: in process as a whole, of remote servers each."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import numpy as np
import pytest

from infalign.errors import RewardMismatch
from infalign.reproduction import Reproduction, RewardExample
from server.app import ServedBundle, create_app
from server.engines import EnginesDown
from server.engines.remote import RemoteEngines
from server.engines.trial import EnginesOnTrial, RewardTrial, reward_trials
from server.options import parse_settings
from server.settings import Settings
from tests.fakes import KNOWN, FakeEngines, fake_served
from tests.unit.server.conftest import client_of
from tests.vllm_server import VllmServer

pytestmark = pytest.mark.anyio
PROMPT = ({"role": "user", "content": KNOWN},)


def served(*rewards: float) -> ServedBundle:
    """A bundle with scored responses: the fake reward model gives 1, 2, 3."""
    found = fake_served()
    examples = tuple(
        RewardExample(prompt=PROMPT, response=f"answer {digit}", rewards={"reward": reward})
        for digit, reward in enumerate(rewards, 1)
    )
    return replace(found, bundle=replace(found.bundle, examples=examples))


def on_trial(engines: FakeEngines, of: ServedBundle) -> EnginesOnTrial:
    return EnginesOnTrial(engines, list(reward_trials(of.bundle, of.tokenizers[1]).values()))


@asynccontextmanager
async def running(
    engines: EnginesOnTrial, of: ServedBundle, failures: list[BaseException]
) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(Settings(), engines, of, failures.append)
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


async def until_ready(client: httpx.AsyncClient) -> None:
    while (await client.get("/ready")).status_code != 200:
        await asyncio.sleep(0.01)


async def test_a_bundle_whose_rewards_are_reproduced_is_served(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "infalign.server")
    of = served(1.0, 2.0, 3.00001)
    async with running(on_trial(FakeEngines(), of), of, []) as client:
        await until_ready(client)
        answer = await client.post("/v1/rewards", json={"prompt": "x", "responses": ["answer 2"]})
        assert answer.json()["rewards"][0]["reward"] == 2
    said = [record for record in caplog.records if "largest difference" in record.message]
    assert [record.levelname for record in said] == ["INFO"]
    assert "the reward model reward gives the bundle's rewards here: largest difference 1e-05" in said[0].message


async def test_one_whose_rewards_are_not_is_refused_before_anybody_is_answered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    of, engines, failures = served(1.0, 2.0, 7.0), FakeEngines(), list[BaseException]()
    async with running(on_trial(engines, of), of, failures) as client:
        while not failures:
            assert (await client.get("/ready")).status_code == 503
            await asyncio.sleep(0.01)
        answer = await client.post("/v1/rewards", json={"prompt": "x", "responses": ["answer 2"]})
        assert answer.status_code == 503
    assert isinstance(failures[0], RewardMismatch)
    assert engines.dead  # stopped
    [line] = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith("the engines did not start: the reward model reward does not give the rewards that the ")
    assert "Response 3 of 3 in calibration/examples.jsonl has 3, expected 7. The largest difference is 4," in line
    assert KNOWN not in line


async def test_nobody_is_answered_while_the_trial_runs() -> None:
    class Slow(FakeEngines):
        go_on = asyncio.Event()

        async def score(self, tokens: Sequence[list[int]]) -> list[float]:
            await self.go_on.wait()
            return await super().score(tokens)

    of, engines = served(1.0), Slow()
    async with running(on_trial(engines, of), of, []) as client:
        await engines.started.wait()
        for _ in range(3):
            assert (await client.get("/ready")).status_code == 503
            assert (await client.post("/v1/best-of-n", json={"prompt": "x", "n": 1})).status_code == 503
        engines.go_on.set()
        await until_ready(client)


async def test_engines_that_are_started_anew_are_tried_anew() -> None:
    class Changing(FakeEngines):
        """Another model after a restart."""

        async def score(self, tokens: Sequence[list[int]]) -> list[float]:
            return [reward + 5 * (self.starts - 1) for reward in await super().score(tokens)]

    gate = on_trial(Changing(), served(1.0))
    await gate.start()
    await gate.check()
    gate.stop()
    with pytest.raises(EnginesDown):
        await gate.check()
    with pytest.raises(RewardMismatch):
        await gate.start()


async def test_a_difference_above_the_grid_that_is_accepted_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    trial = RewardTrial(Reproduction("reward", np.array([1.0]), 0.3), ([ord("1")],), 1e-4)
    trial.check([1.2], [0], "here")
    assert caplog.records[0].levelname == "WARNING"
    assert "largest difference 0.2, accepted 0.3; rewards that tied may no longer tie" in caplog.records[0].message


async def test_examples_that_do_not_fit_the_context_are_left_out() -> None:
    trial = RewardTrial(Reproduction("reward", np.array([9.0, 1.0]), 1e-4), ([ord("1")] * 50, [ord("1")]), 1e-4)
    await EnginesOnTrial(FakeEngines(context=20), [trial]).start()  # the long one is expected to have 9
    with pytest.raises(RewardMismatch, match="the engines read 0 tokens, fewer than any of"):
        await EnginesOnTrial(FakeEngines(context=0), [trial]).start()


def remote(trial: RewardTrial, *reward_urls: str, policy: str) -> RemoteEngines:
    settings = parse_settings({"policy_urls": policy, "reward_urls": ",".join(reward_urls), "remote_timeout": "5"})
    return RemoteEngines(settings, ["demo"], {"reward": ()}, 99, trials={"reward": trial}, interval=0.1)


def scores(*rewards: float) -> RewardTrial:
    """The stand-in scores tokens with their last, halved: these expect ``rewards`` of 2 and 4."""
    return RewardTrial(Reproduction("reward", np.array(rewards), 0.01), ([9, 2], [9, 4]), 1e-4)


async def test_a_remote_server_is_tried_before_it_is_asked() -> None:
    with VllmServer("demo") as policy, VllmServer("reward") as reward:
        engines = remote(scores(1.0, 2.0), reward.url, policy=policy.url)
        await engines.start()
        # The texts are scored at the same time, so they may arrive in any order.
        assert sorted(body["input"] for body in reward.asked) == [[9, 2], [9, 4]]
        assert await engines.score([[6]]) == [3.0]
        engines.stop()


async def test_remote_engines_without_a_server_that_gives_the_rewards_do_not_start() -> None:
    with (
        VllmServer("demo") as policy,
        VllmServer("reward") as reward,
        pytest.raises(RewardMismatch, match=r"Response 2 of 2 .* has 2, expected 5"),
    ):
        await remote(scores(1.0, 5.0), reward.url, policy=policy.url).start()


async def test_a_remote_server_that_gives_other_rewards_is_set_aside_for_the_others() -> None:
    class Other(VllmServer):
        """Another model."""

        @staticmethod
        def logit(tokens: list[int]) -> float:
            return tokens[-1] * 2.0

    with VllmServer("demo") as policy, VllmServer("reward") as reward, Other("reward") as other:
        engines = remote(scores(1.0, 2.0), other.url, reward.url, policy=policy.url)
        await engines.start()
        assert await asyncio.gather(*(engines.score([[6]]) for _ in range(6))) == [[3.0]] * 6
        await engines.check()
        engines.stop()
