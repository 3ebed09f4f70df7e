"""Campaigns and batches over real engines."""

import json
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest

from infalign import Bundle, WorstOfN, over_prompts
from infalign.estimators import expected_value
from tests.commands import run_here
from tests.integration.conftest import children
from tests.training_runs import INFALIGN
from training.data import corpus
from workbench.prompts import Prompt, read_prompts

PROMPTS, SAMPLES, N, REPEATS = 20, 32, 4, 8


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"prompt": prompt.text, "kind": "odd" if i % 2 else "even"}
        for i, prompt in enumerate(corpus.prompts()[:PROMPTS])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_campaign_that_is_killed_estimates_what_requests_for_the_worst_of_n_give(
    server: str, client: httpx.Client, prompts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "campaign"
    arguments = ["probe", str(prompts), "--url", server, "--n", str(SAMPLES), "--output", str(folder)]
    killed = subprocess.Popen([INFALIGN, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = folder / "journal.jsonl"
    while not (journal.is_file() and journal.stat().st_size):
        assert killed.poll() is None
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = {line.split('"text":')[1] for line in journal.read_text().splitlines()}
    assert run_here(*arguments).returncode == 0
    table = pq.read_table(folder / "samples").sort_by([("prompt_id", "ascending"), ("index", "ascending")])
    assert table.num_rows == PROMPTS * SAMPLES
    assert len(before) < table.num_rows
    rewards = table["reward"].to_numpy().reshape(PROMPTS, SAMPLES)
    estimates = dict(zip(table["prompt_id"].to_pylist()[::SAMPLES], expected_value(rewards, WorstOfN(N)), strict=True))

    def measure(prompt: Prompt) -> float:
        # Not the campaign's seeds, and other ones for each prompt: what one seed draws for two prompts is alike.
        seeds = np.random.default_rng(int(prompt.id[:8], 16)).integers(2**40, size=REPEATS)
        bodies = [{"messages": prompt.messages, "n": N, "seed": int(seed)} for seed in seeds]
        answers = [client.post("/v1/worst-of-n", json=body).json() for body in bodies]
        return float(estimates[prompt.id] - np.mean([answer["selected"][0]["reward"] for answer in answers]))

    with ThreadPoolExecutor(8) as pool:
        differences = list(pool.map(measure, read_prompts(prompts).prompts))
    interval = over_prompts(differences, level=0.999)
    assert interval.low < 0 < interval.high


def test_a_bundle_is_served_as_long_as_the_command_runs(bundle: Bundle, prompts: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.jsonl"
    arguments = [
        INFALIGN,
        "decode",
        str(prompts),
        "--limit",
        "3",
        "--bundle",
        str(bundle.path),
        "--output",
        str(output),
    ]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    while not (servers := children(process.pid, "workbench.local_server")):
        assert process.poll() is None
        time.sleep(0.1)
    assert process.wait(120) == 0
    assert not any(server.is_running() for server in servers)
    assert all(json.loads(line)["quantile"] > 0 for line in output.read_text().splitlines())
