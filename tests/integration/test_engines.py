"""VLLM's engines on their own, set up for models that the demo has none of."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from infalign import Bundle

POSITIONS = 300
TEXTS = [[5 + place % 50 for place in range(length)] for length in (7, POSITIONS)]
SCORE = """
import asyncio, json, sys
from pathlib import Path
from server.engines.vllm import VllmEngines
from server.settings import Settings

async def main():
    policy, reward, settings, texts = sys.argv[1:]
    engines = VllmEngines(Path(policy), Path(policy), [Path(reward)], Settings(**json.loads(settings)))
    await engines.start()
    print("rewards", json.dumps([await engines.score([text]) for text in json.loads(texts)]))
    engines.stop()

asyncio.run(main())
"""


@pytest.fixture
def encoder(bundle: Bundle, tmp_path: Path) -> Path:
    """A reward model whose tokens look at those that follow."""
    tokenizer = AutoTokenizer.from_pretrained(bundle.reward_model)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=POSITIONS,
        num_labels=1,
        initializer_range=0.5,
        pad_token_id=tokenizer.pad_token_id,
        **shape,
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_an_encoder_reads_a_text_that_is_longer_than_a_step(bundle: Bundle, encoder: Path) -> None:
    settings = json.dumps({"reward_step_tokens": 64})
    arguments = (str(bundle.policy().directory), str(encoder), settings, json.dumps(TEXTS))
    command = [sys.executable, "-c", SCORE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stdout.splitlines() if line.startswith("rewards")]
    model = BertForSequenceClassification.from_pretrained(encoder).eval()
    with torch.no_grad():
        expected = [model(torch.tensor([text])).logits[0].tolist() for text in TEXTS]
    assert json.loads(line.removeprefix("rewards")) == [pytest.approx(one, abs=1e-4) for one in expected]
    assert "--reward-step-tokens is 300 for it" in done.stderr
