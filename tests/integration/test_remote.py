"""`infalign serve` on real vLLM servers: the same answers as with engines of its own."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from infalign import Bundle
from server.engines import NextToken, wire
from tests.integration.conftest import serving, vllm, wait_until
from tests.kinds import cells
from training.models import load_causal
from training.reference_judge import next_logprobs

ASKED = [{"role": "user", "content": "My bicycle has weak brakes. What should I do?"}]


def candidates(url: str, **fields: Any) -> list[Any]:
    body = {"messages": ASKED, "return_candidates": True, **fields}
    answer = httpx.post(f"{url}/v1/best-of-n", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["candidates"])


def rewards(url: str, texts: list[str]) -> list[float]:
    answer = httpx.post(f"{url}/v1/rewards", json={"messages": ASKED, "responses": texts}, timeout=120)
    assert answer.status_code == 200, answer.text
    return [one["reward"] for one in answer.json()["rewards"]]


async def ask_next(url: str, model: str, text: list[int], tokens: Sequence[int]) -> NextToken:
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return await wire.next_logprobs(client, model, text, tokens)


UNHOLDABLE = {"type": "string", "pattern": "^.{1,280}$"}
DIFFICULT: list[dict[str, Any]] = [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": UNHOLDABLE}}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "#/nowhere"}}}},
    {"logit_bias": {"999999": 1}},
    {"response_format": {"type": "json_object"}, "logprobs": 3, "max_tokens": 4, "return_candidates": True},
]
"""What an engine refuses or fails at, and log-probabilities of minus infinity."""


def difficult_answers(url: str) -> list[Any]:
    """Status, field at fault, and the least log-probability of each."""
    found = []
    for fields in DIFFICULT:
        answer = httpx.post(f"{url}/v1/best-of-n", json={"prompt": "Hello", "n": 1, "seed": 1, **fields}, timeout=120)
        if answer.status_code == 200:
            (candidate,) = answer.json()["candidates"]
            least = min(logprob for token in candidate["logprobs"] for _, logprob in token["top"])
            found.append((answer.status_code, None, least))
        else:
            found.append((answer.status_code, answer.json()["error"]["param"], None))
    return found


@cells("remote", kinds=("classifier",))
def test_remote_engines_answer_as_those_in_process_do(bundle: Bundle, server: str, tmp_path: Path) -> None:
    policy = vllm(tmp_path / "policy", bundle.policy().directory, "--generation-config", "vllm")
    reward = vllm(tmp_path / "reward", bundle.reward_model, "--runner", "pooling")
    with policy as (policy_url, _), reward as (reward_url, scorer):
        urls = ("--policy-urls", policy_url, "--reward-urls", reward_url)
        with serving(tmp_path / "log", str(bundle.path), *urls) as url:
            # The likeliest response does not depend on how an engine uses random numbers; others differ from theirs.
            (remote,), (local,) = (candidates(one, n=1, seed=3, temperature=0, logprobs=2) for one in (url, server))
            for key in ("text", "finish_reason", "completion_tokens", "seed"):
                assert remote[key] == local[key]
            told = [[token["logprob"] for token in one["logprobs"]] for one in (remote, local)]
            assert told[0] == pytest.approx(told[1], abs=1e-3)

            drawn = candidates(url, n=8, seed=11)
            assert len({one["text"] for one in drawn}) > 1
            assert [one["text"] for one in candidates(url, n=8, seed=11)] == [one["text"] for one in drawn]
            expected_rewards = rewards(server, [one["text"] for one in drawn])
            assert [one["reward"] for one in drawn] == pytest.approx(expected_rewards, abs=2e-4)

            read, tokens = [5, 6, 7, 8], range(1024, 1152)
            found = asyncio.run(ask_next(policy_url, str(bundle.policy().directory), read, tokens))
            (logprobs,) = next_logprobs(load_causal(bundle.policy().directory), [read], tokens)
            assert found.logprobs == pytest.approx(logprobs, abs=1e-3), "of unlikely tokens too"
            assert found.tokens == 5

            expected = [(400, f"response_format{below}", None) for below in (".json_schema.schema", "")]
            expected += [(400, "logit_bias", None), (200, None, -9999.0)]
            assert difficult_answers(url) == difficult_answers(server) == expected
            assert httpx.get(f"{url}/ready").status_code == 200

            for process in (*psutil.Process(scorer.pid).children(), scorer):  # its engine would live on
                process.kill()
            wait_until(lambda: httpx.get(f"{url}/ready").status_code != 200)
            assert reward_url not in httpx.get(f"{url}/ready").text, "where the engines are is not for whoever may ask"
            wait_until(lambda: f"{reward_url}: " in (tmp_path / "log").read_text())
            failed = httpx.post(f"{url}/v1/best-of-n", json={"prompt": "x", "n": 1}, timeout=120)
            assert failed.status_code == 503
