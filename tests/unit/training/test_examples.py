"""Rows of the real world: what is used, what is dropped and why, and that no prompt is in both splits."""

import gzip
import json
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infalign import InvalidValue
from training.configs import load_config
from training.data import PROMPTS, read_prompts, read_rows, write_data
from training.data.examples import (
    Example,
    make_pool_parser,
    parse_preference,
    parse_prompt,
    parse_transcript,
    read_examples,
)
from training.data.files import read_files, read_hub
from training.data.rows import HELD_OUT, PREFERENCES, REPORT, SFT, split_examples

REAL = Path(__file__).parents[3].parent / "shared" / "data" / "hh-harmless-test.jsonl.gz"
ASKED = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye"


def transcript(response: str, prompt: str = ASKED) -> str:
    return f"{prompt}\n\nAssistant: {response}"


def row(chosen: str, rejected: str) -> dict[str, str]:
    return {"chosen": chosen, "rejected": rejected}


def test_a_transcript_becomes_messages_and_two_responses() -> None:
    found, defects = read_examples([row(transcript("Take care."), transcript("Go away."))], parse_transcript)
    assert not defects
    assert found == [
        Example(
            [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
                {"role": "user", "content": "Bye"},
            ],
            ("Take care.",),
            (("Take care.", "Go away."),),
        )
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "not an object"),
        ([], "not an object"),
        ({}, "no chosen transcript"),
        ({"chosen": transcript("a"), "rejected": 3}, "no rejected transcript"),
        (row("no turns", "at all"), "no response of the assistant"),
        (row(transcript("a"), transcript("b", "\n\nHuman: Hello")), "prompts differ"),
        (row(transcript(""), transcript("b")), "empty response"),
        (row(transcript("same"), transcript("same ")), "equal responses"),
        (row(transcript("a", "\n\nHuman: "), transcript("b", "\n\nHuman: ")), "empty turn"),
        (row(transcript("a", ""), transcript("b", "")), "empty prompt"),
        (row(transcript("a", "Hi."), transcript("b", "Hi.")), "text before the first turn"),
        (
            row(transcript("a", "\n\nHuman: x\n\nHuman: y"), transcript("b", "\n\nHuman: x\n\nHuman: y")),
            "do not alternate",
        ),
        (row(transcript("a", "\n\nAssistant: x"), transcript("b", "\n\nAssistant: x")), "do not alternate"),
        (row(transcript("a\n\nHuman: c"), transcript("b")), "do not alternate"),
    ],
)
def test_a_transcript_that_cannot_be_used_is_counted_by_reason(bad: object, reason: str) -> None:
    found, defects = read_examples([bad], parse_transcript)
    assert not found
    [(counted, times)] = defects.items()
    assert (reason in counted, times) == (True, 1)


def message(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


USER, GOOD, BAD = message("user", "Hi"), message("assistant", "Hello."), message("assistant", "What?")


@pytest.mark.parametrize(
    "good",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD], "score_chosen": 3.0},
    ],
)
def test_preference_rows_with_explicit_and_implicit_prompt(good: dict) -> None:
    assert read_examples([good], parse_preference) == (
        [Example([USER], ("Hello.",), (("Hello.", "What?"),))],
        Counter(),
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"prompt": "Hi", "chosen": 3, "rejected": "b"}, "chosen is neither text nor messages"),
        ({"prompt": "Hi", "chosen": "a"}, "rejected is neither text nor messages"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        ({"chosen": [USER, GOOD], "rejected": [message("user", "Yo"), BAD]}, "prompts differ"),
        ({"prompt": [USER], "chosen": [GOOD, GOOD], "rejected": [BAD]}, "does not begin with its prompt"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, "a response that is not the assistant's"),
        ({"prompt": [USER], "chosen": [message("assistant", None)], "rejected": [BAD]}, "a message whose content"),
        ({"prompt": ["Hi"], "chosen": [GOOD], "rejected": [BAD]}, "a message without role and content"),
        ({"prompt": [USER, GOOD], "chosen": [GOOD], "rejected": [BAD]}, "the prompt does not end with the user"),
    ],
)
def test_a_preference_that_cannot_be_used_is_counted_by_reason(bad: dict, reason: str) -> None:
    found, defects = read_examples([bad], parse_preference)
    assert not found
    assert [reason in counted for counted in defects] == [True]


POOL = [{"text": text, "score": score} for text, score in (("a", 0.1), ("b", 0.9), ("c", 0.1), (" ", 1.0), ("d", 0.5))]


def test_a_pool_gives_its_best_answers_and_comparisons_of_unequal_scores() -> None:
    parse = make_pool_parser(pairs=9, answers=2, random=Random(0))
    [example], defects = read_examples([{"prompt": "Hi", "responses": POOL}], parse)
    assert (example.prompt, example.answers, defects) == ([USER], ("b", "d"), Counter())
    assert sorted(example.pairs) == [("b", "a"), ("b", "c"), ("b", "d"), ("d", "a"), ("d", "c")]
    assert len(make_pool_parser(pairs=3, answers=1, random=Random(0))({"prompt": "Hi", "responses": POOL}).pairs) == 3


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"prompt": "Hi"}, "responses are not a list"),
        ({"prompt": "Hi", "responses": [{"score": 1}]}, "a response without text"),
        ({"prompt": "Hi", "responses": [{"text": "a"}]}, "a response without a score"),
        ({"prompt": "Hi", "responses": POOL[:1] + POOL[2:3]}, "no two responses with different scores"),
        ({"prompt": 3, "responses": POOL}, "a prompt that is neither text nor messages"),
    ],
)
def test_a_pool_that_cannot_be_used_is_counted_by_reason(bad: dict, reason: str) -> None:
    assert read_examples([bad], make_pool_parser(1, 1, Random(0))) == ([], Counter({reason: 1}))


@pytest.mark.parametrize("row", [{"prompt": "Hi"}, {"prompt": [USER], "other": 1}])
def test_a_prompt_alone_is_text_or_messages(row: dict) -> None:
    assert read_examples([row], parse_prompt) == ([Example([USER])], Counter())


def test_space_around_a_message_makes_no_other_prompt() -> None:
    """Many chat templates leave it out, so that two prompts would have one calibration."""
    examples = [Example([{"role": "user", "content": text}]) for text in ("a", "a\n", " a", "b", "c")]
    material = split_examples(examples, 2, 0, Counter())
    prompts = [*material.train, *material.validation, *material.test]
    assert sorted(prompt[0]["content"].strip() for prompt in prompts) == ["a", "b", "c"]


@given(st.lists(st.integers(0, 9), min_size=12, max_size=40), st.integers(1, 4), st.integers(0, 5))
def test_no_prompt_is_in_both_splits_and_nothing_is_lost(asked: list[int], held_out: int, seed: int) -> None:
    texts = [f"good {i}" for i in range(len(asked))]
    examples = [
        Example([message("user", str(p))], (text,), ((text, "bad"),)) for p, text in zip(asked, texts, strict=True)
    ]
    if len(set(asked)) <= held_out:
        with pytest.raises(InvalidValue, match=f"held_out: got {held_out}"):
            split_examples(examples, held_out, seed, Counter())
        return
    material = split_examples(examples, held_out, seed, Counter())
    trained = {comparison.prompt[0]["content"] for comparison in material.comparisons}
    validated = {comparison.prompt[0]["content"] for comparison in material.held_out}
    assert len(validated) == held_out == len(material.validation) + len(material.test)
    assert not trained & validated
    assert sorted(comparison.chosen for comparison in material.comparisons + material.held_out) == sorted(texts)
    assert [answer.text for answer in material.answers] == [comparison.chosen for comparison in material.comparisons]
    again = split_examples(examples, held_out, seed, Counter())
    assert (again.train, again.comparisons) == (material.train, material.comparisons)


def config(path: Path, *more: str) -> object:
    overrides = ("data.transcripts.held_out=2", "model.scratch.vocabulary=300", "rollouts.max_tokens=8", *more)
    return load_config("hh-harmless", overrides, (str(path),))


def written(tmp_path: Path, rows: list[object], *more: str) -> Path:
    source = tmp_path / "rows.jsonl.gz"
    source.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    target = tmp_path / "data"
    target.mkdir()
    write_data(target, config=config(source, *more), seed=0)
    return target


def many(count: int = 12) -> list[object]:
    return [
        row(transcript("a", f"\n\nHuman: Question {i}?"), transcript("b", f"\n\nHuman: Question {i}?"))
        for i in range(count)
    ]


def test_the_stage_writes_every_file_and_reports_what_it_dropped(tmp_path: Path) -> None:
    long = "why " * 400
    rows = [*many(), None, row(transcript(""), transcript("b")), row(transcript("a" + long), transcript("b"))]
    target = written(tmp_path, rows, "model.scratch.positions=64")
    report = json.loads((target / REPORT).read_text())
    assert report["validation_prompts"] == report["test_prompts"] == 1
    assert report["train_prompts"] + report["validation_prompts"] + report["test_prompts"] == 13
    assert report["dropped"]["not an object"] == report["dropped"]["empty response"] == 1
    assert report["dropped"]["comparison too long"] == 1
    assert report["multi_turn"] == pytest.approx(1 / 13, abs=1e-4)
    counts = {name: len(read_rows(target / name)) for name in (SFT, PREFERENCES, HELD_OUT, PROMPTS)}
    assert counts[PREFERENCES] + counts[HELD_OUT] == 12
    assert [len(read_prompts(target, split_examples)) for split_examples in ("train", "validation", "test")] == [
        11,
        1,
        1,
    ]


def test_prompts_that_leave_no_room_are_dropped_with_a_count(tmp_path: Path) -> None:
    endless = "\n\nHuman: " + "why " * 400
    rows = [*many(), row(transcript("a", endless), transcript("b", endless))]
    dropped = json.loads((written(tmp_path, rows, "model.scratch.positions=64") / REPORT).read_text())["dropped"]
    assert dropped["prompt too long"] == dropped["comparison too long"] == 1


def test_when_nothing_is_left_it_is_said(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="data: got 'no train left'"):
        written(tmp_path, many(), "model.scratch.positions=4")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.jsonl", None, "data: got .*missing.jsonl', accepted: a file of JSON lines"),
        ("broken.jsonl.gz", b"no gzip", "Not a gzipped file"),
        ("latin.jsonl", b'{"chosen": "\xe9"}', "in UTF-8, .*codec can't decode byte 0xe9"),
        ("cut.jsonl.gz", gzip.compress(b"x" * 100, mtime=0)[:-9], "ended before the end-of-stream marker"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidValue, match=message):
        list(read_files([str(tmp_path / name)]))


def test_a_line_that_is_no_json_is_a_defect_not_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("oops\n\n[]\n" + json.dumps(many(1)[0]) + "\n")
    found, defects = read_examples(read_files([str(path)]), parse_transcript)
    assert (len(found), defects) == (1, Counter({"not JSON": 1, "not an object": 1}))


def test_a_dataset_folder_is_read_like_one_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "harmless").mkdir()
    (tmp_path / "harmless" / "train.jsonl").write_text("\n".join(map(json.dumps, many(3))))
    found, defects = read_examples(read_hub(str(tmp_path), "harmless", "train"), parse_transcript)
    assert (len(found), defects) == (3, Counter())
    with pytest.raises(InvalidValue, match="a dataset that can be loaded"):
        read_hub(str(tmp_path / "nowhere"), None, "train")


def test_a_limit_counts_what_can_be_used() -> None:
    found, defects = read_examples([None, *many(5)], parse_transcript, limit=2)
    assert (len(found), sum(defects.values())) == (2, 1)


@pytest.mark.skipif(not REAL.exists(), reason="the real transcripts are not beside this checkout")
def test_the_real_transcripts_are_read_with_their_known_defects() -> None:
    found, defects = read_examples(read_files([str(REAL)]), parse_transcript)
    assert (len(found), sum(defects.values())) == (2299, 13)
    assert defects["prompts differ"] == 5
    assert defects["empty response"] == 4
    assert sum(len(example.prompt) > 1 for example in found) / len(found) == pytest.approx(0.71, abs=0.01)
    assert len({json.dumps(example.prompt) for example in found}) == 2297
