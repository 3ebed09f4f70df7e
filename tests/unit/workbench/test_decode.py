"""``infalign decode``: one answer to each row, in the order of the file."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from server.app import create_app
from server.settings import Settings
from tests.fakes import FakeEngines, fake_served, recalibrated
from tests.http_server import serve_app
from tests.unit.workbench.conftest import Run
from workbench.batch import Batch


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_are_in_the_order_of_the_file_and_keep_their_tags(run: Run, url: str, tmp_path: Path) -> None:
    path, out = tmp_path / "p.csv", tmp_path / "answers.jsonl"
    path.write_text("prompt,kind\n" + "".join(f"question {number},{number % 2}\n" for number in range(20)))
    result = run("decode", path, "--url", url, "--procedure", "best-of-4", "--seed", 3, "--output", out)
    assert result.exit_code == 0
    assert f"{out}: answers 20, errors 0\n" in result.output
    rows = lines(out)
    assert [row["prompt"] for row in rows] == [f"question {number}" for number in range(20)]
    assert [row["tags"]["kind"] for row in rows] == [str(number % 2) for number in range(20)]
    assert {(row["text"], row["reward"], row["procedure"]) for row in rows} == {("answer 6", 6.0, "best-of-4")}
    assert not list(tmp_path.glob("*.partial"))


def test_repeated_and_empty_prompts_have_their_rows(run: Run, url: str, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "answers.jsonl"
    prompts = ["a", "b", "a", "", "c"]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    run("decode", path, "--url", url, "--output", out)
    assert [row["prompt"] for row in lines(out)] == prompts
    out.unlink()
    run("decode", path, "--url", url, "--limit", 3, "--output", out)
    assert [row["prompt"] for row in lines(out)] == prompts[:3]
    path.write_text("\n")
    refused = run("decode", path, "--url", url, "--output", tmp_path / "none.jsonl")
    assert "accepted: a file with at least one prompt" in refused.output


def test_worst_of_n_and_candidates_in_parquet(run: Run, url: str, questions: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.parquet"
    arguments = ("--procedure", "worst-of-4", "--seed", 3, "--return-candidates", "--output", out)
    assert run("decode", questions, "--url", url, *arguments).exit_code == 0
    [first, *_] = pq.read_table(out).to_pylist()
    assert (first["text"], first["tokens"]) == ("answer 3", 12)
    assert [candidate["reward"] for candidate in json.loads(first["candidates"])] == [3.0, 4.0, 5.0, 6.0]


def interrupt(batch: Batch) -> int:
    raise KeyboardInterrupt


def test_an_interrupted_run_goes_on(
    run: Run, url: str, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    arguments = ("decode", questions, "--url", url, "--seed", 3)
    run(*arguments, "--output", whole)
    with monkeypatch.context() as patch:
        patch.setattr(Batch, "finish", interrupt)
        assert run(*arguments, "--output", out).exit_code == 130
    partial = tmp_path / "answers.jsonl.partial"
    head = partial.read_text().splitlines()[0]
    kept = lines(whole)[2] | {"text": "from the first run"}
    partial.write_text(head + "\n" + json.dumps([2, kept]) + "\n" + '[3, {"text": "cu')
    mismatch = "is of a run with other settings, or of another model: finish that one, or delete the file"
    assert mismatch in run("decode", questions, "--url", url, "--seed", 4, "--output", out).output
    with serve_app(create_app(Settings(), FakeEngines(), recalibrated(fake_served()))) as other:
        assert mismatch in run("decode", questions, "--url", other, "--seed", 3, "--output", out).output
    assert run(*arguments, "--output", out).exit_code == 0
    assert [row["text"] for row in lines(out)] == [*["answer 9"] * 2, "from the first run", *["answer 9"] * 3]
    again = run(*arguments, "--output", out)
    assert f"--output: got '{out}', accepted: a file that does not exist yet" in again.output


def test_candidates_are_kept_though_the_first_row_is_an_error(run: Run, url: str, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "answers.parquet"
    path.write_text(json.dumps({"prompt": "b" * 500}) + "\n" + json.dumps({"prompt": "a"}) + "\n")
    assert run("decode", path, "--url", url, "--return-candidates", "--output", out).exit_code == 1
    bad, good = pq.read_table(out).to_pylist()
    assert (bad["candidates"], bad["text"]) == (None, None)
    assert len(json.loads(good["candidates"])) == 8


def test_a_row_that_is_refused_says_why(run: Run, url: str, tmp_path: Path) -> None:
    path, out = tmp_path / "p.jsonl", tmp_path / "answers.jsonl"
    path.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps({"prompt": "b" * 500}) + "\n")
    result = run("decode", path, "--url", url, "--output", out)
    assert result.exit_code == 1
    assert f"{out}: answers 1, errors 1\n" in result.output
    good, bad = lines(out)
    assert good["error"] is None
    assert bad["text"] is None
    assert "does not fit" in bad["error"] or "tokens" in bad["error"]


def test_openai_batch_files_are_answered_in_their_format(run: Run, url: str, tmp_path: Path) -> None:
    path, out = tmp_path / "batch.jsonl", tmp_path / "answers.jsonl"
    messages = [{"role": "user", "content": "hi"}]
    bodies = [{"model": "fake:best-of-4", "messages": messages}, {"model": "gpt", "messages": messages}]
    path.write_text(
        "".join(
            json.dumps({"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"
            for i, body in enumerate(bodies)
        )
    )
    assert run("decode", path, "--url", url, "--output", out).exit_code == 1
    good, bad = lines(out)
    assert good["custom_id"] == "0"
    assert good["response"]["status_code"] == 200
    assert good["response"]["body"]["choices"][0]["message"]["content"].startswith("answer")
    assert good["error"] is None
    assert bad["error"]["code"] == "model_not_found"


BATCH = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": []}}
MISTAKES: list[tuple[list[dict[str, Any]], tuple[object, ...], str]] = [
    ([BATCH, BATCH], (), "custom_id: got 'a', accepted: each once; row 2 repeats it"),
    (
        [{**BATCH, "url": "/v1/embeddings"}],
        (),
        "url: got '/v1/embeddings', accepted: in row 1 one of /v1/chat/completions",
    ),
    ([{**BATCH, "body": {"stream": True}}], (), "body.stream: got True, accepted: false in row 1"),
    ([BATCH, {"prompt": "Why?"}], (), "accepted: custom_id, url and body in each row, as in the first; row 2 differs"),
    ([BATCH], ("--seed", 3), "--seed: got 3, accepted: nothing for a file in OpenAI's batch format"),
    ([BATCH], ("--procedure", "worst-of-4"), "--procedure: got 'worst-of-4', accepted: nothing for a file in OpenAI's"),
    ([BATCH], ("--return-candidates",), "--return-candidates: got True, accepted: nothing for a file in OpenAI's"),
    ([{"prompt": "cut \ud83d"}], (), "accepted: text in row 1 that is Unicode; it has '\\ud83d', half of a character"),
    (
        [{"prompt": "Why?"}],
        ("--procedure", "best"),
        "--procedure: got 'best', accepted: standard, best-of-N or worst-of-N",
    ),
    ([{"prompt": "Why?"}], ("--output", "answers.csv"), "accepted: a file that ends in .jsonl or .parquet"),
]


@pytest.mark.parametrize(("rows", "arguments", "message"), MISTAKES)
def test_mistakes_are_named(
    run: Run, url: str, tmp_path: Path, rows: list[dict[str, Any]], arguments: tuple[object, ...], message: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run("decode", path, "--url", url, "--output", tmp_path / "answers.jsonl", *arguments)
    assert result.exit_code == 2
    assert message in result.output
