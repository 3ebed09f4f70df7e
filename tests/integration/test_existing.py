"""Two names make a bundle that is served: `infalign bundle` on models that exist, through vLLM."""

import subprocess
from pathlib import Path

import httpx
from openai import OpenAI

from infalign import Bundle, read_bundle
from tests.integration.conftest import INFALIGN, launched


def test_a_policy_and_a_reward_are_served_without_training(bundle: Bundle, tmp_path: Path) -> None:
    models = ("--policy", str(bundle.reference), "--reward", str(bundle.reward_model))
    made = tmp_path / "made"
    options = ("--samples", "16", "--max-tokens", "48", "--name", "mine", "--output", str(made))
    done = subprocess.run([INFALIGN, "bundle", *models, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{made}\n"
    assert len(read_bundle(made).table) == 6

    refused = subprocess.run([INFALIGN, "evaluate", str(made)], capture_output=True, text=True)
    assert refused.returncode == 2
    assert f"BUNDLE: got '{made}', accepted: a bundle with an aligned policy" in refused.stderr

    store = str(tmp_path / "calibrations.db")
    with launched(tmp_path / "log", str(made), "--calibration-store", store) as running:
        client = OpenAI(base_url=f"{running.url}/v1", api_key="none")
        assert "mine" in [model.id for model in client.models.list()]
        body = {"messages": [{"role": "user", "content": "My laptop is slow. What can I do?"}], "n": 4, "seed": 1}
        fields = {"calibrate": True, "return_candidates": True}
        answer = httpx.post(f"{running.url}/v1/best-of-n", json=body | fields, timeout=120).json()
        assert answer["model"] == "mine"
        assert answer["calibration"] == {"scope": "prompt", "samples": 16}
        assert answer["selected"][0]["reward"] == max(candidate["reward"] for candidate in answer["candidates"])
        assert len(running.engines) == 2, "the policy is the reference"
        chat = client.chat.completions.create(
            model="mine:best-of-2", messages=[{"role": "user", "content": "My bicycle squeaks."}], max_tokens=16
        )
        assert chat.choices[0].message.content
