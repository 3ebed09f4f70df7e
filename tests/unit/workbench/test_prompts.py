"""Files of prompts in every format, and what is wrong with them."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infalign import InvalidValue
from workbench.prompts import parse_messages, read_prompts

ROWS = [
    {"prompt": "Why?", "category": "open", "level": 3, "is_safe": True, "extra": {"a": 1}},
    {"prompt": "How?", "level": 4},
]
TAGS = {"category": "open", "level": "3", "is_safe": "true"}


def write(path: Path, content: str) -> Path:
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return path


def test_every_format_gives_the_same_prompts(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    pq.write_table(
        pa.Table.from_pylist([{"prompt": row["prompt"], "level": row["level"]} for row in ROWS]), tmp_path / "p.parquet"
    )
    paths = [
        write(tmp_path / "p.jsonl", lines),
        write(tmp_path / "p.jsonl.gz", lines),
        write(tmp_path / "p.json", json.dumps(ROWS)),
        write(tmp_path / "p.csv", "prompt,level\nWhy?,3\nHow?,4\n"),
        write(tmp_path / "p.tsv", "level\tprompt\r\n3\tWhy?\r\n4\tHow?\r\n"),
        write(tmp_path / "p.txt", "Why?\r\nHow?"),
        tmp_path / "p.parquet",
    ]
    files = [read_prompts(path) for path in paths]
    assert {tuple(prompt.text for prompt in file.prompts) for file in files} == {("Why?", "How?")}
    assert len({file.digest for file in files}) == 1
    assert files[0].prompts[0].tags == TAGS
    assert [file.prompts[1].tags for file in files[3:]] == [{"level": "4"}, {"level": "4"}, {}, {"level": "4"}]


def test_a_transcript_of_hh_rlhf_ends_before_the_last_response() -> None:
    text = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How do I\n\nbake?\n\nAssistant: Flour."
    assert parse_messages(text) == [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "How do I\n\nbake?"},
    ]


def test_messages_may_be_json_in_a_table(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    path = tmp_path / "p.parquet"
    pq.write_table(pa.Table.from_pylist([{"messages": json.dumps(messages)}]), path)
    [prompt] = read_prompts(path).prompts
    assert list(prompt.messages) == messages
    assert json.loads(prompt.text) == messages


def test_empty_prompts_and_repeated_ones_are_named(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl", "".join(json.dumps({"prompt": text}) + "\n" for text in ["a", " ", "b", "a", None, "a"])
    )
    file = read_prompts(path)
    assert [prompt.text for prompt in file.prompts] == ["a", "b"]
    assert file.notes == (
        "p.jsonl: left out 2 rows (2, 5): empty prompt",
        "p.jsonl: left out 2 rows (4, 6): prompt that occurs before",
    )


def test_responses_keep_the_tags_of_their_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "prompt,answer,harmful\nWhy?,So.,1\nHow?,,0\nWhy?,No.,0\n")
    file = read_prompts(path, responses="answer")
    assert [prompt.text for prompt in file.prompts] == ["Why?", "How?"]
    assert file.responses[file.prompts[0].id] == [("So.", {"harmful": "1"}), ("No.", {"harmful": "0"})]
    assert file.notes == ("p.csv: left out row 2: empty response",)


def test_a_limit_leaves_out_no_response_of_the_prompts_that_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "p.csv", "prompt,answer\n" + "A,1\nB,2\nC,3\n" * 3)
    file = read_prompts(path, limit=2, responses="answer")
    assert [len(file.responses[prompt.id]) for prompt in file.prompts] == [3, 3]


def test_a_line_separator_within_json_does_not_end_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", json.dumps({"prompt": "a\u2028b"}, ensure_ascii=False) + "\n")
    assert read_prompts(path).prompts[0].text == "a\u2028b"


BAD = {
    "missing.jsonl": (None, {}, "PROMPTS: got '.*missing.jsonl', accepted: an existing file that ends in"),
    "p.docx": ("x", {}, "PROMPTS: got '.*p.docx', accepted: an existing file"),
    "empty.jsonl": ("\n", {}, "PROMPTS: got '.*empty.jsonl', accepted: a file with at least one prompt"),
    "cut.jsonl": ('{"prompt": "a"}\n{"prompt": "b', {}, "accepted: JSON in line 2"),
    "cut.jsonl.gz": (b"\x1f\x8b\x08", {}, "accepted: a file that can be read"),
    "latin.txt": (b"caf\xe9", {}, "accepted: text in UTF-8"),
    "columns.csv": ("question\nWhy?\n", {}, "--column: got None, accepted: a column of row 1 of columns.csv: question"),
    "named.csv": (
        "prompt\nWhy?\n",
        {"column": "text"},
        "--column: got 'text', accepted: a column of row 1 of named.csv: prompt",
    ),
    "lines.txt": (
        "Why?",
        {"column": "text"},
        "--column: got 'text', accepted: nothing for row 1 of lines.txt, which has no",
    ),
    "wide.csv": ("prompt,tag\nWhy?,a,b\n", {}, "accepted: 2 values in each row, one per column; row 1 differs"),
    "number.jsonl": ('{"prompt": 3}\n', {}, "accepted: in row 1 a prompt, as text or as messages; it has 3"),
    "array.json": ('{"prompt": "a"}', {}, "accepted: a JSON array of rows"),
    "broken.parquet": (b"PAR1", {}, "accepted: a Parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str) -> None:
    content, options, message = BAD[name]
    if content is not None:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InvalidValue, match=message):
        read_prompts(tmp_path / name, **options)
