"""Every kind of reward, in everything that rewards are used for. The cells of docs/reference/reward-kinds.md."""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import httpx
import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer

from infalign import Bundle, read_bundle
from infalign.files import reward_models
from infalign.manifest import SamplingLaw
from infalign.rewards import ReferenceJudge, check_trust, open_reward, read_reference_judges
from infalign.templates import render_prompt, tokenise
from server.app import ServedBundle, create_app
from server.engines import Completion, NextToken, Sampling
from server.settings import Settings
from tests.commands import run_here
from tests.fakes import FakeEngines
from tests.integration.conftest import launched, vllm
from tests.kinds import KINDS, POSITIONS, answer, cells, make_models, section
from tests.scoring_service import serving as scoring
from tests.vllm_server import VllmServer
from training.adapters import add_adapters
from training.models import load_causal
from training.reference_judge import next_logprobs
from training.sampler import Sampler
from training.scorer import Scorer, load_scorer

TOKENS, DRAWN = 8, 16
ASKED = "why, why?"
PROMPTS = [f"why {number}?" for number in range(20)]
DRAWS = ("--engine", "transformers")


@dataclass(frozen=True)
class Place:
    """The models, the scoring service and the home that all tests share."""

    folder: Path
    url: str

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def run(self, *arguments: str) -> str:
        """What a command writes to stdout; it must succeed."""
        done = run_here(*arguments, INFALIGN_HOME=str(self.folder / "home"))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def prompts(self, name: str, texts: list[str]) -> Path:
        file = self.folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
        return file


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("kinds")
    make_models(folder / "models")
    with scoring(answer) as (url, _):
        yield Place(folder, url)


def train(place: Place, kind: str) -> Bundle:
    """Train a tiny adapter with one reward, in the folder of its kind."""
    config = {
        "name": kind,
        "seed": 0,
        "procedure": "best-of-4",
        "transformation": "exp(10)",
        "data": {"prompts": {"paths": [str(place.prompts("train", PROMPTS))], "held_out": 3}},
        "model": {"base": {"path": str(place.models / "policy"), "positions": POSITIONS}},
        "reward": section(place.models, place.url, kind),
        "rollouts": {"samples": 8, "max_tokens": TOKENS},
        "ctrl": {
            "target_kl": 0.1,
            "learning_rate": 0.003,
            "prompts": 2,
            "generations": 2,
            "steps": 2,
            "lora": {"rank": 2, "alpha": 4},
        },
        "evaluation": {"draws": 16},
    }
    file = place.folder / f"{kind}.yaml"
    file.write_text(yaml.safe_dump(config))
    place.run("train", str(file), "--output", str(place.folder / kind))
    return read_bundle(place.folder / kind)


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest, place: Place) -> Bundle:
    """The bundle of each kind."""
    return train(place, request.param)


@cells("training")
def test_a_policy_is_trained(trained: Bundle) -> None:
    measured = trained.policy().record.measured
    assert 0 < measured["win_rate_best-of-4"] < 1
    assert len(np.unique(trained.table.rewards)) > 8, "rewards that say nothing would train nothing"


@cells("evaluate")
def test_a_policy_is_evaluated(trained: Bundle, place: Place) -> None:
    options = ("--draws", "4", "-n", "2", "--limit", "2", "--trust-rewards", "--json")
    found = json.loads(place.run("evaluate", str(trained.path), *DRAWS, *options))
    assert found["prompts"] == 2
    assert all(0 <= row["win_rate"]["value"] <= 1 for row in found["decoded"])


@cells("calibrate")
def test_further_prompts_are_calibrated(trained: Bundle, place: Place, tmp_path: Path) -> None:
    new = place.prompts("new", ["how?", "why not?"])
    path = tmp_path / "larger"
    place.run("calibrate", str(trained.path), str(new), *DRAWS, "--trust-rewards", "--output", str(path))
    assert len(read_bundle(path).table) == len(trained.table) + 2


@pytest.fixture(scope="module")
def all_kinds(place: Place) -> Bundle:
    """A bundle of models that exist, with a reward of every kind."""
    prompts = str(place.prompts("few", ["why?", "how?"]))
    options = ["--policy", str(place.models / "policy"), "--prompts", prompts, "--samples", "8", "--name", "all"]
    options += ["--max-tokens", str(TOKENS), "--reward", "function:tests.reward_functions:spread", *DRAWS]
    rewards = section(place.models, place.url, *KINDS)
    options += [f"--set=reward.{key}={json.dumps(entries)}" for key, entries in rewards.items()]
    path = place.folder / "all"
    place.run("bundle", *options, "--output", str(path))
    return read_bundle(path)


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def decode(url: str, model: str, **fields: Any) -> dict[str, Any]:
    asked = {"model": model, "messages": ask(ASKED), "n": 4, "seed": 1}
    answer = httpx.post(f"{url}/v1/best-of-n", json=asked | {"return_candidates": True} | fields, timeout=240)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def check(bundle: Bundle, found: dict[str, Any]) -> None:
    """The rewards of an answer are those that training would give, and the best is selected."""
    assert found["selected"][0]["reward"] == max(candidate["reward"] for candidate in found["candidates"])
    for candidate in found["candidates"]:
        assert set(candidate["rewards"]) == set(KINDS)
    for name, path in reward_models(bundle.reward_model).items():
        scorer = load_scorer(path, name, bundle.reference)
        texts = [candidate["text"] for candidate in found["candidates"]]
        given = [candidate["rewards"][name] for candidate in found["candidates"]]
        assert given == pytest.approx(scorer.score([ask(ASKED)] * len(texts), texts), abs=2e-4), name


def test_rewards_that_are_not_trusted_do_not_run(place: Place, all_kinds: Bundle) -> None:
    for command in (["evaluate"], ["serve"], ["calibrate", str(place.prompts("new", ["how?"]))]):
        done = run_here(command[0], str(all_kinds.path), *command[1:])
        assert done.returncode == 2
        assert "--trust-rewards: got 'nothing', accepted: --trust-rewards, to run what the bundle" in done.stderr
    done = run_here("evaluate", str(all_kinds.path), "--trust-rewards")
    assert f"BUNDLE: got '{all_kinds.path}', accepted: a bundle with an aligned policy" in done.stderr


@cells("server", "on demand", "adapters")
def test_vllm_serves_all_kinds_on_adapters(place: Place, all_kinds: Bundle, tmp_path: Path) -> None:
    adapted = add_adapters(Path(shutil.copytree(all_kinds.path, tmp_path / "all")), {"kind": place.models / "adapter"})
    store = ("--calibration-store", str(tmp_path / "calibrations.db"))
    with launched(tmp_path / "log", str(adapted.path), *store, "--trust-rewards") as running:
        found = decode(running.url, "kind", calibrate=True, logprobs=3)
        assert found["calibration"] == {"scope": "prompt", "samples": 8}
        check(adapted, found)
        tops = [token["top"] for candidate in found["candidates"] for token in candidate["logprobs"]]
        assert {len(top) for top in tops} == {3}, "though the reference judges others in the same steps"
        assert min(logprob for top in tops for _, logprob in top) > -9999
        read, cached = (running.metric(f"infalign_judge_{kind}_total") for kind in ("tokens", "cached_tokens"))
        assert 0 < cached < read, "the rubric and the conversation are read once for all candidates"
        assert len(running.engines) == 1 + sum(kind.takes_engine for kind in KINDS.values())


class ScoringServer(VllmServer):
    """A stand-in for a vLLM server that scores with transformers."""

    def __init__(self, model: Path) -> None:
        super().__init__("reward", max_model_len=POSITIONS)
        self.scorer = Scorer.load(model)

    @torch.inference_mode()
    def logit(self, tokens: list[int]) -> float:
        return self.scorer.read(self.scorer.model(torch.tensor([tokens])).logits)[0]


class PolicyServer(VllmServer):
    """A stand-in for a vLLM server of the policy that judges with transformers."""

    def __init__(self, model: Path) -> None:
        super().__init__("all", max_model_len=POSITIONS)
        self.model = load_causal(model)

    def _next_logprobs(self, prompt: list[int], tokens: list[int]) -> dict[str, Any]:
        answer = super()._next_logprobs(prompt, tokens)
        (logprobs,) = next_logprobs(self.model, [prompt], tokens)
        top = {f"token_id:{token}": logprob for token, logprob in zip(tokens, logprobs, strict=True)}
        answer["choices"][0]["logprobs"]["top_logprobs"] = [top]
        return answer


@cells("remote")
def test_vllm_servers_elsewhere_serve_all_kinds(place: Place, all_kinds: Bundle, tmp_path: Path) -> None:
    """What a real one says of a policy and a classifier, test_remote.py has. A judge has several outputs."""
    models = {name: path for name, path in reward_models(all_kinds.reward_model).items() if KINDS[name].takes_engine}
    with ExitStack() as stack:
        urls = {"judge": stack.enter_context(vllm(tmp_path / "judge", models.pop("judge"), "--runner", "pooling"))[0]}
        urls |= {name: stack.enter_context(ScoringServer(path)).url for name, path in models.items()}
        policy = stack.enter_context(PolicyServer(all_kinds.reference))
        rewards = ",".join(f"{name}={url}" for name, url in urls.items())
        options = ("--policy-urls", policy.url, "--reward-urls", rewards, "--trust-rewards")
        store = ("--calibration-store", str(tmp_path / "calibrations.db"))
        with launched(tmp_path / "log", str(all_kinds.path), *options, *store) as running:
            found = decode(running.url, "all", calibrate=True)
            assert found["calibration"] == {"scope": "prompt", "samples": 8}, "the policy is the reference"
            check(all_kinds, found)


@pytest.fixture(scope="module")
def drawn(place: Place) -> dict[str, list[str]]:
    """Responses of the reference to the prompts of the trainings."""
    sampler = Sampler.load(place.models / "policy", SamplingLaw(max_tokens=TOKENS))
    prompts = [text for text in PROMPTS for _ in range(DRAWN)]
    texts = sampler.text(sampler.draw([ask(text) for text in prompts], seed=5))
    return {text: texts[DRAWN * row : DRAWN * (row + 1)] for row, text in enumerate(PROMPTS)}


class DrawnEngines(FakeEngines):
    """Answers what was drawn before, by the seed, and scores with transformers."""

    def __init__(
        self, texts: Mapping[tuple[int, ...], Sequence[str]], scorers: Sequence[Scorer], reference: Path
    ) -> None:
        super().__init__(context=POSITIONS)
        self.texts, self.scorers, self.reference = texts, scorers, load_causal(reference)

    async def generate(self, prompt: list[int], sampling: Sampling, listen: Any = None) -> Completion:
        return Completion(self.texts[tuple(prompt)][sampling.seed], TOKENS, "length")

    @torch.inference_mode()
    async def score(self, tokens: Sequence[list[int]]) -> list[float]:
        each = zip(self.scorers, tokens, strict=True)
        return [scorer.read(scorer.model(torch.tensor([text])).logits)[0] for scorer, text in each]

    async def next_logprobs(self, prompt: list[int], tokens: Sequence[int]) -> NextToken:
        (logprobs,) = next_logprobs(self.reference, [prompt], tokens)
        return NextToken(tuple(logprobs), len(prompt) + 1, 0)


async def measure_drift(bundle: Bundle, texts: Mapping[str, Sequence[str]]) -> float:
    """The drift that a server reports after answers of the reference with these texts."""
    tokenizer = AutoTokenizer.from_pretrained(bundle.reference)
    models = reward_models(bundle.reward_model)
    records = check_trust(models, trust=True)
    judges = {
        name: ReferenceJudge.create(record, AutoTokenizer.from_pretrained(bundle.reference), name)
        for name, record in read_reference_judges(models).items()
    }
    scorers = {name: Scorer.load(path) for name, path in models.items() if name not in {*records, *judges}}
    known = {tuple(tokenise(tokenizer, render_prompt(tokenizer, ask(text)))): texts[text] for text in texts}
    served = ServedBundle(
        bundle,
        (tokenizer, {name: reader.tokenizer for name, reader in (scorers | judges).items()}),
        {"reference": "standard"},
        {name: open_reward(name, record) for name, record in records.items()},
        judges,
    )
    engines = DrawnEngines(known, list(scorers.values()), bundle.reference)
    app = create_app(Settings(), engines, served)
    async with app.router.lifespan_context(app):
        await engines.started.wait()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1") as client:
            for text in texts:
                body = {"messages": ask(text), "n": DRAWN, "seed": 0}
                answer = await client.post("/v1/best-of-n", json=body)
                assert answer.status_code == 200, answer.text
                assert answer.json()["calibration"]["scope"] == "prompt"
            lines = (await client.get("/metrics")).text.splitlines()
    [line] = [line for line in lines if line.startswith("infalign_quantile_drift{")]
    return float(line.rsplit(" ", 1)[1])


@cells("drift")
def test_rewards_that_no_longer_fit_the_calibration_are_noticed(
    trained: Bundle, drawn: Mapping[str, list[str]]
) -> None:
    assert anyio.run(measure_drift, trained, drawn) < 0.2
    [path] = reward_models(trained.reward_model).values()
    scorer, best = load_scorer(path, reference=trained.reference), {}
    for text, responses in drawn.items():
        rewards = scorer.score([ask(text)] * DRAWN, responses)
        best[text] = [responses[int(rewards.argmax())]] * DRAWN
    assert anyio.run(measure_drift, trained, best) > 0.5
