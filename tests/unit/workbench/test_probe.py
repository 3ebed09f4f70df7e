"""``infalign probe`` against a server: what it stores, how it goes on, and what it does when things fail."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from server.app import create_app
from server.engines import RequestFailed
from server.settings import Settings
from tests.fakes import FakeEngines, fake_served
from tests.http_server import serve_app
from tests.keys import key, keys_file
from tests.unit.workbench.conftest import Run
from workbench.augmentations import Augmentation
from workbench.prompts import read_prompts
from workbench.sources import Sampling


def rows(directory: Path) -> list[dict[str, Any]]:
    table = pq.read_table(directory / "samples").sort_by([("prompt_id", "ascending"), ("index", "ascending")])
    return list(table.to_pylist())


def test_a_campaign_stores_every_sample_once(run: Run, url: str, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "campaign"
    result = run("probe", questions, "--url", url, "--n", 20, "--output", out)
    assert result.exit_code == 0, result.output
    assert f"120 samples in {out}; next: infalign report {out}" in result.output
    samples = rows(out)
    assert len({(row["prompt_id"], row["index"]) for row in samples}) == len(samples) == 120
    first = Sampling("fake", "", 0).seed_of(
        next(p for p in read_prompts(questions).prompts if p.id == samples[0]["prompt_id"])
    )
    assert [row["seed"] - first for row in samples[:20]] == list(range(20))
    assert samples[0]["text"] == f"answer {first}"
    assert samples[0]["reward"] == int(samples[0]["text"][-1])
    assert 0 <= samples[0]["quantile_low"] <= samples[0]["quantile"] <= samples[0]["quantile_high"] <= 1
    assert (samples[0]["model"], samples[0]["scope"]) == ("fake", "global")
    before = (out / "samples" / "part-00000.parquet").stat().st_mtime_ns
    assert run("probe", questions, "--url", url, "--n", 20, "--output", out).exit_code == 0
    assert (out / "samples" / "part-00000.parquet").stat().st_mtime_ns == before  # nothing was left to do
    assert run("probe", questions, "--url", url, "--n", 24, "--output", out).exit_code == 0
    more = rows(out)
    assert len(more) == 144
    assert [row for row in more if row["index"] < 20] == samples


def test_the_same_seed_draws_the_same_samples(run: Run, url: str, questions: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("probe", questions, "--url", url, "--n", 3, "--seed", seed, "--output", tmp_path / name)
    a, b, c = (rows(tmp_path / name) for name in "abc")
    assert a == b
    assert {row["seed"] for row in a}.isdisjoint(row["seed"] for row in c)


def test_a_sample_that_fails_is_asked_for_again_and_never_forever(
    run: Run, home: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[int] = []

    async def wait(failures: int) -> None:
        waits.append(failures)

    monkeypatch.setattr("workbench.campaign.back_off", wait)
    engines = FakeEngines()
    prompt = read_prompts(questions).prompts[0]
    lost = Sampling("fake", "", 0).seed_of(prompt) + 5
    engines.faults[lost] = RequestFailed("no such luck")
    out = tmp_path / "campaign"
    with serve_app(create_app(Settings(max_n=16), engines, fake_served())) as url:
        arguments = ("probe", questions, "--url", url, "--n", 8, "--output", out, "--retries", 3)
        result = run(*arguments)
        assert result.exit_code == 1
        assert "missing samples: 1 by engine_error. The first: " in result.output
        assert waits == [1, 2, 3]
        assert len(rows(out)) == 47
        assert sum(sampling.seed == lost for sampling in engines.drawn) == 4
        del engines.faults[lost]
        assert run(*arguments).exit_code == 0  # what is missing is asked for again
    assert len(rows(out)) == 48


def test_a_prompt_that_is_refused_costs_no_other(run: Run, home: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "campaign"
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("a", "b" * 500, "c")))
    with serve_app(create_app(Settings(max_n=4), FakeEngines(), fake_served())) as url:
        result = run("probe", path, "--url", url, "--n", 8, "--output", out)
        assert result.exit_code == 1
        assert "missing samples: 8 by context_length_exceeded" in result.output
        assert {row["prompt"] for row in rows(out)} == {"a", "c"}
        again = run("probe", path, "--url", url, "--n", 8, "--output", out)
    assert "missing samples: 8" in again.output  # it is remembered, and not asked for again


def test_every_sample_of_a_refused_prompt_is_counted(run: Run, home: Path, tmp_path: Path) -> None:
    """Those too that were not asked for, since the prompt had been refused."""
    path, out = tmp_path / "p.jsonl", tmp_path / "campaign"
    path.write_text(json.dumps({"prompt": "b" * 500}) + "\n")
    with serve_app(create_app(Settings(max_n=4), FakeEngines(), fake_served())) as url:
        for count in (64, 80):
            arguments = ("--url", url, "--n", count, "--concurrency", 1, "--output", out)
            assert f"missing samples: {count} by context_length_exceeded" in run("probe", path, *arguments).output


def test_an_augmented_prompt_that_is_refused_costs_its_own_sample_alone(
    run: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lengthen(self: Augmentation, text: str, seed: str) -> str:
        return "b" * 500 if seed.endswith(" 5") else text

    monkeypatch.setattr(Augmentation, "apply", lengthen)
    path, out = tmp_path / "p.jsonl", tmp_path / "campaign"
    path.write_text(json.dumps({"prompt": "a"}) + "\n")
    with serve_app(create_app(Settings(max_n=4), FakeEngines(), fake_served())) as url:
        arguments = ("probe", path, "--url", url, "--augment", "noise", "--output", out)
        assert "missing samples: 1 by context_length_exceeded" in run(*arguments, "--n", 16).output
        assert [row["index"] for row in rows(out)] == [*range(5), *range(6, 16)]
        assert "missing samples: 1 by" in run(*arguments, "--n", 20).output
    assert len(rows(out)) == 19


def test_a_busy_server_is_saturated_and_refuses_little(run: Run, home: Path, questions: Path, tmp_path: Path) -> None:
    app = create_app(Settings(max_n=4, max_requests=2), FakeEngines(), fake_served())
    with serve_app(app) as url:
        result = run("probe", questions, "--url", url, "--n", 40, "--output", tmp_path / "campaign")
        metrics = httpx.get(f"{url}/metrics").text
    assert result.exit_code == 0
    assert "infalign_rejected_total{" not in metrics  # the session says how many requests it takes


def test_a_key_with_a_limit_is_waited_for(run: Run, home: Path, questions: Path, tmp_path: Path) -> None:
    keys = keys_file(tmp_path, "single")
    with serve_app(create_app(Settings(max_n=4, keys=keys), FakeEngines(), fake_served())) as url:
        out = tmp_path / "campaign"
        result = run(
            "probe", questions, "--url", url, "--key", key("single"), "--n", 8, "--output", out, "--concurrency", 2
        )
    assert result.exit_code == 0, result.output
    assert len(rows(out)) == 48


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("app", "a campaign takes a key with the role probe, app has generate"),
        ("stranger", "the key is not known"),
    ],
)
def test_a_key_that_may_not_probe_is_refused_at_once(
    run: Run, home: Path, questions: Path, tmp_path: Path, name: str, message: str
) -> None:
    keys = keys_file(tmp_path, "app")
    with serve_app(create_app(Settings(keys=keys), FakeEngines(), fake_served())) as url:
        result = run("probe", questions, "--url", url, "--key", key(name), "--output", tmp_path / "campaign")
    assert result.exit_code == 2
    assert message in result.output


def test_a_server_that_disappears_is_waited_for(
    run: Run, home: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workbench.pace.FIRST_WAIT", 0.05)
    out, results = tmp_path / "campaign", []

    def probe() -> None:
        results.append(run("probe", questions, "--url", url, "--n", 64, "--output", out, "--concurrency", 1))

    engines = FakeEngines()
    with serve_app(create_app(Settings(max_n=2), engines, fake_served())) as url:
        thread = threading.Thread(target=probe)
        thread.start()
        while len(engines.drawn) < 20:
            time.sleep(0.01)
    port = int(url.rpartition(":")[2])
    time.sleep(0.3)
    with serve_app(create_app(Settings(max_n=2), FakeEngines(), fake_served()), port):
        thread.join(30)
    assert [result.exit_code for result in results] == [0]
    assert len(rows(out)) == 6 * 64


def test_a_server_that_stays_away_is_given_up(run: Run, questions: Path, tmp_path: Path, url: str) -> None:
    result = run("probe", questions, "--url", "http://127.0.0.1:9", "--patience", 0, "--output", tmp_path / "c")
    assert result.exit_code == 2
    assert "http://127.0.0.1:9 does not answer" in result.output
    other = run("probe", questions, "--url", f"{url}/nowhere", "--output", tmp_path / "c")
    assert "is no infalign server of this version: /v1/session answers" in other.output


def test_prompts_with_narrow_intervals_get_fewer_samples(run: Run, url: str, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "campaign"
    arguments = ("probe", questions, "--url", url, "--n", 200, "--until-width", 0.3, "--output", out)
    assert run(*arguments, "--hit", "reward<1").exit_code == 0
    counts = [sum(row["prompt_id"] == name for row in rows(out)) for name in {row["prompt_id"] for row in rows(out)}]
    assert all(16 <= count <= 48 for count in counts)  # one digit in ten is a hit
    assert run(*arguments, "--hit", "reward<5").exit_code == 0  # half of them, for which it takes more
    assert len(rows(out)) > sum(counts)


def test_augmented_prompts_are_sent_and_the_response_is_scored_for_the_prompt(
    run: Run, url: str, questions: Path, tmp_path: Path
) -> None:
    out = tmp_path / "campaign"
    result = run(
        "probe", questions, "--url", url, "--n", 3, "--augment", "scramble", "--augment", "noise(0.5)", "--output", out
    )
    assert result.exit_code == 0, result.output
    samples = rows(out)
    assert len(samples) == 18
    assert all(row["augmented"] != row["prompt"] and row["prompt"].startswith("question") for row in samples)
    assert len({row["augmented"] for row in samples}) == 18
    assert {row["augmentation"] for row in samples} == {"scramble(0.6), noise(0.5)"}
    narrow = ("--until-width", 0.9, "--hit", "reward<1", "--augment", "noise")
    run("probe", questions, "--url", url, "--n", 64, *narrow, "--output", tmp_path / "narrow")
    assert len(rows(tmp_path / "narrow")) == 6 * 16  # the width is looked at after every 16


def test_only_texts_are_augmented(run: Run, url: str, tmp_path: Path) -> None:
    path = tmp_path / "parts.jsonl"
    message = {"role": "user", "content": [{"type": "text", "text": "Why?"}]}
    path.write_text(json.dumps({"messages": [message]}) + "\n")
    result = run("probe", path, "--url", url, "--augment", "noise", "--output", tmp_path / "c")
    assert result.exit_code == 2
    assert "--augment: got 'noise(0.06)', accepted: prompts whose last message is a text" in result.output


def test_given_responses_are_scored(run: Run, url: str, tmp_path: Path) -> None:
    path, out = tmp_path / "rated.csv", tmp_path / "campaign"
    path.write_text("prompt,answer,harmful\nWhy?,it is 3,1\nWhy?,it is 7,0\nHow?,it is 5,0\n")
    assert run("probe", path, "--url", url, "--responses", "answer", "--output", out).exit_code == 0
    assert {(row["text"], row["reward"], row["tags"]) for row in rows(out)} == {
        ("it is 3", 3.0, '{"harmful": "1"}'),
        ("it is 7", 7.0, '{"harmful": "0"}'),
        ("it is 5", 5.0, '{"harmful": "0"}'),
    }


MISTAKES = {
    ("--augment", "shout"): "--augment: got 'shout', accepted: scramble, capitals, noise",
    ("--augment", "noise(2)"): "--augment: got 'noise(2)', accepted: scramble, capitals, noise",
    ("--until-width", 0.1): "--hit: got None, accepted: what a hit is, for --until-width",
    ("--hit", "reward<1"): "--hit: got 'reward<1', accepted: nothing without --until-width",
    ("--until-width", 0.1, "--hit", "judge<1"): "--hit: got 'judge<1', accepted: reward<X, quantile<X or text~REGEX",
    ("--model", "gpt"): "--model: got 'gpt', accepted: fake",
    ("--url", "ftp://x"): "--url: got 'ftp://x', accepted: an address such as http://127.0.0.1:8000",
    ("--reference",): "--reference: got True, accepted: nothing without --bundle",
    ("--n", 0): "Invalid value for '--n'",
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_are_named(run: Run, url: str, questions: Path, tmp_path: Path, arguments: tuple[object, ...]) -> None:
    result = run("probe", questions, "--url", url, "--output", tmp_path / "c", *arguments)
    assert result.exit_code == 2
    assert MISTAKES[arguments] in result.output


def test_a_bundle_that_cannot_be_served_says_why(run: Run, home: Path, questions: Path, tmp_path: Path) -> None:
    empty = tmp_path / "bundle"
    empty.mkdir()
    result = run("probe", questions, "--bundle", empty, "--output", tmp_path / "c")
    assert result.exit_code == 2
    assert "the server of the bundle ended with status 2: " in result.output
    assert f"{empty}" in result.output
    missing = run("probe", questions, "--bundle", tmp_path / "nothing", "--output", tmp_path / "c")
    assert "--bundle: got '" in missing.output
