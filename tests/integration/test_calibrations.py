"""Calibration on demand through real vLLM: a prompt that the demo does not know gets quantiles of its own."""

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infalign import Bundle
from infalign.templates import prompt_key, render_prompt, tokenise

ASKED = [{"role": "user", "content": "My bicycle was left in the rain all week. Is that bad for the chain?"}]
DRAWS = 64


@pytest.fixture(scope="module")
def fresh(bundle: Bundle) -> list[str]:
    """Responses of the reference, drawn by transformers under the calibration's law."""
    tokenizer, law = AutoTokenizer.from_pretrained(bundle.reference), bundle.calibration.sampling
    model = AutoModelForCausalLM.from_pretrained(bundle.reference, dtype=torch.float32).eval()
    prompt = torch.tensor([tokenise(tokenizer, render_prompt(tokenizer, ASKED))])
    torch.manual_seed(0)
    with torch.inference_mode():
        drawn = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            temperature=law.temperature,
            top_p=law.top_p,
            top_k=law.top_k,
            max_new_tokens=law.max_tokens,
            num_return_sequences=DRAWS,
        )
    return list(tokenizer.batch_decode(drawn[:, prompt.shape[1] :], skip_special_tokens=True))


def test_an_unknown_prompt_is_calibrated_by_the_reference(server: str, bundle: Bundle, fresh: list[str]) -> None:
    key = prompt_key(render_prompt(AutoTokenizer.from_pretrained(bundle.reference), ASKED))
    assert key not in bundle.table
    k = bundle.calibration.samples
    with httpx.Client(base_url=server, timeout=300) as client:
        body = {"messages": ASKED, "n": 4, "seed": 3, "calibrate": True}
        decoded = client.post("/v1/best-of-n", json=body).json()
        assert decoded["calibration"] == {"scope": "prompt", "samples": k}
        shown = client.post("/v1/calibrations", json={"messages": ASKED}).json()
        assert (shown["prompt_key"], shown["cached"]) == (key, True)
        rewards = list(shown["reference_rewards"]["reward"].values())
        assert rewards == sorted(rewards)
        scored = client.post("/v1/rewards", json={"messages": ASKED, "responses": fresh}).json()
        assert client.get("/ready").status_code == 200
    assert scored["calibration"] == {"scope": "prompt", "samples": k}
    quantiles = np.array([row["quantile"] for row in scored["rewards"]])
    # Means of uniforms on either side: the draws here and the anchors there.
    deviation = np.sqrt((1 / DRAWS + 1 / k) / 12)
    print(f"\nmean quantile of {DRAWS} draws of the reference: {quantiles.mean():.3f} ± {deviation:.3f}")
    assert abs(quantiles.mean() - 0.5) < 4 * deviation


def test_an_unknown_prompt_is_predicted_without_a_draw(server: str, bundle: Bundle) -> None:
    assert bundle.scorer is not None
    asked = [{"role": "user", "content": "My laptop is slow again. What should I do?"}]  # like those of training
    with httpx.Client(base_url=server, timeout=300) as client:
        body = {"messages": asked, "n": 4, "seed": 3, "calibrate": "predict", "return_candidates": True}
        decoded = client.post("/v1/best-of-n", json=body).json()
        assert decoded["calibration"] == {"scope": "predicted", "samples": bundle.scorer.anchors}
        assert client.post("/v1/best-of-n", json=body).json()["candidates"] == decoded["candidates"]
        own = client.post("/v1/calibrations", json={"messages": asked}).json()
        assert own["cached"] is False, "nothing was drawn for the prediction"
        texts = [candidate["text"] for candidate in decoded["candidates"]]
        scored = client.post("/v1/rewards", json={"messages": asked, "responses": texts}).json()["rewards"]
    errors = [abs(a["quantile"] - b["quantile"]) for a, b in zip(decoded["candidates"], scored, strict=True)]
    print(f"\nerrors of predicted quantiles: {', '.join(f'{error:.2f}' for error in errors)}")
    assert max(errors) < 0.4  # it is 0.15 at the worst reward of a prompt, on average


def test_a_budget_is_split(server: str) -> None:
    prompts = ("Hello", "My order arrived broken. What now?", "Is my drill still under warranty?")
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    with httpx.Client(base_url=server, timeout=300) as client:
        answer = client.post("/v1/budgets", json={"conversations": conversations, "total": 24}).json()
    assert sum(one["n"] for one in answer["conversations"]) == answer["total"] == 24
    assert answer["expected_reward"] >= answer["even_reward"]
    assert all(one["gain"] > 0 for one in answer["conversations"] if one["n"] > 1)
