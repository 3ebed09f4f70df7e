"""VLLM's engines on their own, set up for models that the demo has none of."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from infalign import Bundle
from tests.integration.conftest import INFALIGN, Running, wait_until, wait_until_ready

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


FILE = """
policy: {max-model-len: 512, enable_prefix_caching: false, tensor_parallel_size: 2}
reward: {data_parallel_size: 2}
"""
"""Settings of engines. The policy is split, and there are two replicas of the reward model."""


@pytest.fixture
def running(bundle: Bundle, tmp_path: Path) -> Iterator[Running]:
    """A server with settings of engines, in a file and on the command line. The test kills it."""
    file, log = tmp_path / "engines.yaml", tmp_path / "log"
    file.write_text(FILE)
    command = [INFALIGN, "serve", str(bundle.path), "--port", "0", "--engines", str(file)]
    command += ["--policy-engine", "max_model_len=256", "--reward-engine", "reward.max_num_seqs=9"]
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr)
    try:
        yield Running(wait_until_ready(process, log), process)
    finally:
        process.kill()
        process.wait()


def test_engines_have_the_settings_of_the_operator_and_end_with_the_server(running: Running) -> None:
    assert 'enable_prefix_caching="False"' in httpx.get(f"{running.url}/metrics").text
    body = {"prompt": "My order has not arrived.", "n": 4, "max_tokens": 16, "seed": 5, "return_candidates": True}
    answers = [httpx.post(f"{running.url}/v1/best-of-n", json=body, timeout=120).json() for _ in range(2)]
    assert answers[0]["candidates"] == answers[1]["candidates"]
    refused = httpx.post(f"{running.url}/v1/best-of-n", json=body | {"max_tokens": 256}, timeout=120)
    assert refused.status_code == 400
    assert "accepted: at most 256 together" in refused.text
    processes = psutil.Process(running.pid).children(recursive=True)
    assert len(processes) >= 6  # a process that schedules, its two workers, two replicas and who balances them
    running.process.kill()
    running.process.wait()
    wait_until(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in processes), 60)


@pytest.mark.parametrize(
    ("option", "code", "line"),
    [
        ("--policy-engine=tensor_paralel_size=2", 2, "did you mean tensor_parallel_size"),
        (
            "--policy-engine=tensor_parallel_size=3",
            1,
            "policy: Total number of attention heads (4) must be",
        ),
        ("--reward-engine=kv_cache_memory_bytes=1099511627776", 1, "the engines take at least 1024."),
    ],
)
def test_what_vllm_refuses_is_reported_in_one_line(bundle: Bundle, option: str, code: int, line: str) -> None:
    command = [INFALIGN, "serve", str(bundle.path), "--port", "0", option]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stderr
    lines = [text for text in done.stderr.splitlines() if not text.startswith("serving ")]
    assert len(lines) == 1, done.stderr
    assert line in lines[0]
