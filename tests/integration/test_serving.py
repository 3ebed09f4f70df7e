"""The demo bundle through real vLLM, real HTTP and the real openai client."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infalign import Bundle
from infalign.templates import prompt_key, render_conversation, render_prompt, tokenise
from tests.bad_requests import BAD
from tests.commands import run_here
from tests.integration.conftest import reproduction_in
from training.data import corpus
from training.data.judge import judge

QUESTION = "My bicycle has weak brakes. What should I do?"
ASKED = [{"role": "user", "content": QUESTION}]
FAR = [{"role": "user", "content": "Why is the sky blue on Mars?"}]


def rewards_by_transformers(bundle: Bundle, messages: list[dict[str, str]], responses: list[str]) -> np.ndarray:
    """Raw rewards from the texts alone, one by one."""
    tokenizer = AutoTokenizer.from_pretrained(bundle.reward_model)
    model = AutoModelForSequenceClassification.from_pretrained(bundle.reward_model, dtype=torch.float32).eval()
    found = []
    for response in responses:
        tokens = torch.tensor([tokenise(tokenizer, render_conversation(tokenizer, messages, response))])
        with torch.inference_mode():
            found.append(model(tokens).logits.item())
    return np.array(found)


def test_the_rewards_of_the_calibration_are_given_exactly(server: str, server_home: Path) -> None:
    level, difference = reproduction_in(server_home / "log")
    assert level == "INFO"
    assert difference <= 1e-4


@pytest.mark.parametrize("messages", [ASKED, FAR], ids=["calibrated", "unknown"])
@pytest.mark.parametrize(("endpoint", "extreme"), [("best-of-n", max), ("worst-of-n", min)])
def test_the_selected_candidate_is_the_extreme_of_all(
    client: httpx.Client, bundle: Bundle, endpoint: str, extreme: Any, messages: list[dict[str, str]]
) -> None:
    body = {"messages": messages, "n": 16, "return_candidates": True, "seed": 3}
    answer = client.post(f"/v1/{endpoint}", json=body).json()
    candidates = answer["candidates"]
    recomputed = rewards_by_transformers(bundle, messages, [candidate["text"] for candidate in candidates])
    assert len(candidates) == 16
    assert [candidate["reward"] for candidate in candidates] == pytest.approx(list(recomputed), abs=2e-4)
    selected = answer["selected"][0]
    assert selected["reward"] == extreme(candidate["reward"] for candidate in candidates)
    assert recomputed[selected["index"]] == pytest.approx(extreme(recomputed), abs=2e-4)
    assert answer["usage"]["completion_tokens"] == sum(candidate["completion_tokens"] for candidate in candidates)


def test_quantiles_are_those_of_the_bundles_calibration(client: httpx.Client, bundle: Bundle) -> None:
    key = prompt_key(render_prompt(AutoTokenizer.from_pretrained(bundle.reference), ASKED))
    assert key in bundle.table
    answer = client.post("/v1/best-of-n", json={"messages": ASKED, "return_candidates": True}).json()
    assert answer["calibration"] == {"scope": "prompt", "samples": bundle.calibration.samples}
    rewards = [candidate["reward"] for candidate in answer["candidates"]]
    expected = bundle.table.lookup(key).quantile(rewards)
    assert [candidate["quantile"] for candidate in answer["candidates"]] == pytest.approx(list(expected))
    far = client.post("/v1/best-of-n", json={"messages": FAR}).json()
    assert far["calibration"]["scope"] == "global"


def test_best_and_worst_differ_plainly_for_the_judge(client: httpx.Client) -> None:
    prompts = corpus.prompts()[:: len(corpus.prompts()) // 24]
    means = {}
    for endpoint in ("best-of-n", "worst-of-n"):
        texts = [
            client.post(f"/v1/{endpoint}", json={"messages": [{"role": "user", "content": prompt.text}], "n": 8}).json()
            for prompt in prompts
        ]
        scores = [
            judge(prompt, answer["selected"][0]["text"]).score for prompt, answer in zip(prompts, texts, strict=True)
        ]
        means[endpoint] = float(np.mean(scores))
    print(f"\nmean judge score over {len(prompts)} prompts: {means}")
    assert means["best-of-n"] - means["worst-of-n"] > 4


def test_the_same_request_gives_the_same_answer(client: httpx.Client) -> None:
    body = {"messages": ASKED, "n": 4, "seed": 11, "return_candidates": True}
    first, again = (client.post("/v1/best-of-n", json=body).json() for _ in range(2))
    assert first["candidates"] == again["candidates"]
    assert len({candidate["text"] for candidate in first["candidates"]}) > 1
    alone = client.post("/v1/best-of-n", json=body | {"n": 1, "seed": 13}).json()
    assert alone["candidates"][0]["text"] == first["candidates"][2]["text"]


def test_rewards_endpoint_scores_given_texts(client: httpx.Client, bundle: Bundle) -> None:
    responses = [
        "You should replace the brake pads. Have a nice day.",
        "Read the manual first. Do not ask me again.",
        "",
        "Unplug it, and write to us again. " * 100,  # longer than a step of the reward model
    ]
    answer = client.post("/v1/rewards", json={"messages": ASKED, "responses": responses}).json()
    rewards = [scored["reward"] for scored in answer["rewards"]]
    assert rewards == pytest.approx(list(rewards_by_transformers(bundle, ASKED, responses)), abs=2e-4)
    assert answer["rewards"][0]["quantile"] > answer["rewards"][1]["quantile"]


@pytest.mark.parametrize(("endpoint", "body", "status", "param"), BAD)
def test_a_bad_request_names_its_field(client: httpx.Client, endpoint: str, body: Any, status: int, param: str) -> None:
    sent: dict[str, Any] = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = client.post(endpoint, headers={"content-type": "application/json"}, **sent)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["param"] == param


def test_early_rejection_draws_less_and_repeats(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)

    def ask(seed: int, stream: bool = False, **fields: Any) -> Any:
        create: Any = client.chat.completions.create
        extra = {"best_of": 16, "early_rejection": True} | fields
        return create(model="demo", messages=ASKED, seed=seed, stream=stream, extra_body=extra)

    rejected, saved = 0, 0
    for seed in (0, 100, 200):  # few answers of a good policy are hopeless
        first, again, whole = ask(seed), ask(seed), ask(seed, early_rejection=False)
        assert first.choices[0].message.content == again.choices[0].message.content
        assert first.rejection["rejected"] == again.rejection["rejected"]
        assert "unread" not in first.rejection
        rejected += first.rejection["rejected"]
        saved += whole.usage.completion_tokens - first.usage.completion_tokens
    assert rejected
    assert saved > 0
    chunks = list(ask(200, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == first.choices[0].message.content
    events = [chunk.candidate["event"] for chunk in chunks if hasattr(chunk, "candidate")]
    assert events.count("rejected") == chunks[-1].rejection["rejected"] == first.rejection["rejected"]
    assert ask(0, target_quantile=0.9).stopping["reason"] in ("target", "cap")


def test_openai_client_gets_the_best_of_n(server: str) -> None:
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0)
    assert [model.id for model in client.models.list()][:2] == ["demo", "demo:best-of-2"]
    chat = client.chat.completions.create(
        model="demo", messages=ASKED, n=2, seed=5, extra_body={"best_of": 8, "return_candidates": True}
    )
    assert len(chat.choices) == 2
    candidates = chat.model_extra["candidates"]
    top = sorted(candidates, key=lambda candidate: -candidate["reward"])[:2]
    assert [choice.message.content for choice in chat.choices] == [candidate["text"] for candidate in top]
    assert chat.usage.completion_tokens == sum(candidate["completion_tokens"] for candidate in candidates)
    text = client.completions.create(model="demo", prompt="Hello", extra_body={"worst_of": 4})
    assert text.choices[0].finish_reason in ("stop", "length")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="demo", messages=ASKED, extra_body={"best_of": 2, "worst_of": 2})
    assert refused.value.param == "worst_of"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="other", messages=ASKED)


def test_long_seeded_prompts_side_by_side_do_not_kill_the_engine(server: str) -> None:
    """Split prefills of seeded requests do on CPU; see server/engines/vllm.py."""
    import asyncio

    async def burst() -> list[int]:
        async with httpx.AsyncClient(base_url=server, timeout=300) as client:
            bodies = [{"prompt": f"{i} " + "why is that so? " * 250, "n": 4, "max_tokens": 8} for i in range(12)]
            answers = await asyncio.gather(*(client.post("/v1/worst-of-n", json=body) for body in bodies))
            return [answer.status_code for answer in answers]

    assert set(asyncio.run(burst())) == {200}
    assert httpx.get(f"{server}/ready").status_code == 200


def test_metrics_pages_and_memory(client: httpx.Client) -> None:
    client.post("/v1/best-of-n", json={"messages": ASKED, "n": 2})
    text = client.get("/metrics").text
    assert "infalign_engines_up 1.0" in text
    assert "vllm:generation_tokens_total" in text
    resident = next(line for line in text.splitlines() if line.startswith("infalign_resident_memory_bytes"))
    gib = float(resident.split()[1]) / 2**30
    print(f"\nresident memory of server and engines: {gib:.2f} GiB")
    assert 0.5 < gib < 6.5  # with the late engines of the reference and of the prefix scorer
    assert "swagger-ui" in client.get("/docs").text
    assert "/v1/best-of-n" in client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_a_whole_file_is_decoded(server: str, tmp_path: Path, kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "shared":
        prompts = request.getfixturevalue("shared") / "data" / "hh-harmless-test.jsonl.gz"
    else:
        prompts = tmp_path / "prompts.jsonl"
        rows = [QUESTION, "plain text", {"prompt": "x"}, {"messages": ASKED}, {"prompt": "long " * 5000}]
        prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "answers.jsonl"
    done = run_here("decode", str(prompts), "--url", server, "--limit", "20", "--output", str(output))
    assert done.returncode == (kind == "own"), done.stderr
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    errors = [answer["error"] for answer in answers if answer["error"]]
    assert (len(answers), len(errors)) == ((5, 1) if kind == "own" else (20, 0))
    assert all(0 <= answer["quantile"] <= 1 for answer in answers if not answer["error"])
