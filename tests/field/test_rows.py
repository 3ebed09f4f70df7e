"""Files of training data as users have them: what is read, what is dropped and counted, what is refused in one line."""

import gzip
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config

from infalign import InvalidValue
from infalign.tokens import control_tokens
from tests.commands import run_here
from training.configs import load_config
from training.data import PREFERENCES, PROMPTS, REPORT, SFT, TOKENIZER, make_tokenizer_check, read_prompts, write_data
from training.data.defects import Defect, summarise
from training.data.examples import (
    Example,
    make_pool_parser,
    parse_preference,
    parse_prompt,
    parse_transcript,
    read_examples,
)
from training.data.files import read_files, read_hub
from training.evaluation.command import read_evaluation_prompts
from training.tokenizer import CHAT_TEMPLATE, train_tokenizer
from workbench.prompts import read_prompts as read_campaign

ROOT = Path(__file__).parents[2]
PROMPTS_ALONE = ("sft=null", "reward={classifiers: [{path: x, higher_is: better}]}")
SURROGATE = "x \ud83d y"


def said(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


SYSTEM, USER = said("system", "Be kind."), said("user", "Hi")
GOOD, BAD = said("assistant", "Hello."), said("assistant", "What?")


def transcript(prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {name: f"\n\nHuman: {prompt}\n\nAssistant: {text}" for name, text in locals().items() if name != "prompt"}


def pool(*scores: object, prompt: object = "Hi") -> dict[str, object]:
    return {"prompt": prompt, "responses": [{"text": f"t{i}", "score": score} for i, score in enumerate(scores)]}


GOOD_ROWS: dict[str, list[Any]] = {
    "transcripts": [transcript(f"Question {i}?", "a", "b") for i in range(5)],
    "preferences": [
        {"prompt": [said("user", f"Question {i}?")], "chosen": [GOOD], "rejected": [BAD]} for i in range(5)
    ],
    "pools": [pool(1, 2, 0.5, prompt=f"Question {i}?") for i in range(5)],
    "prompts": [{"prompt": f"Question {i}?"} for i in range(5)],
}


def encode(rows: list[Any]) -> bytes:
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()


def stage(tmp_path: Path, source: str, content: bytes, *overrides: str, name: str = "rows.jsonl") -> Path:
    """What the stage ``data`` makes of one file."""
    path, target = tmp_path / name, tmp_path / "data"
    path.write_bytes(content)
    target.mkdir()
    more = {"pools": ", pairs: 2, answers: 2", "prompts": ""}.get(source, "")
    small = ("model={scratch: {vocabulary: 300, hidden: 32, layers: 1, positions: 512}}", "rollouts.max_tokens=8")
    data = f"data={{{source}: {{paths: ['{path}'], held_out: 2{more}}}}}"
    if source == "prompts":  # nothing to train a model from scratch on
        small = (base_model(tmp_path, CHAT_TEMPLATE), *PROMPTS_ALONE, *small[1:])
    write_data(target, config=load_config("alpaca-pool", (data, *small, *overrides)), seed=0)
    return target


def base_model(tmp_path: Path, template: str) -> str:
    """The override that takes a base model with this chat template."""
    tokenizer = train_tokenizer(["Question, answer"], 300)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "base")
    return f"model={{base: {{path: '{tmp_path / 'base'}', positions: 512}}}}"


def dropped(target: Path) -> dict[str, int]:
    return json.loads((target / REPORT).read_text())["dropped"]


DEEP = '{"prompt": ' + "[" * 3000 + "]" * 3000 + "}"
UNICODE = "text that is not valid Unicode"
NOT_FINITE = "a score that is not a finite number"
CONTROL = "text that spells out the control token <|end|>"
MORE = "a message with more than role, content and name"


@pytest.mark.parametrize(
    ("source", "row", "reason"),
    [
        pytest.param("transcripts", transcript(SURROGATE, "a", "b"), UNICODE, id="surrogate-transcript-prompt"),
        pytest.param("transcripts", transcript("q", SURROGATE, "b"), UNICODE, id="surrogate-transcript-chosen"),
        pytest.param("transcripts", transcript("q", "a", SURROGATE), UNICODE, id="surrogate-transcript-rejected"),
        pytest.param(
            "preferences",
            {"prompt": [said("system", SURROGATE), USER], "chosen": [GOOD], "rejected": [BAD]},
            UNICODE,
            id="surrogate-system-turn",
        ),
        pytest.param(
            "preferences",
            {"prompt": [USER], "chosen": [GOOD], "rejected": [said("assistant", SURROGATE)]},
            UNICODE,
            id="surrogate-rejected",
        ),
        pytest.param(
            "preferences",
            {"prompt": [said(SURROGATE, "Hi")], "chosen": [GOOD], "rejected": [BAD]},
            UNICODE,
            id="surrogate-role",
        ),
        pytest.param(
            "preferences", {"prompt": SURROGATE, "chosen": "a", "rejected": "b"}, UNICODE, id="surrogate-text"
        ),
        pytest.param("pools", pool(1, 2, prompt=SURROGATE), UNICODE, id="surrogate-pool-prompt"),
        pytest.param(
            "pools",
            {"prompt": "Hi", "responses": [{"text": SURROGATE, "score": 1}, {"text": "b", "score": 0}]},
            UNICODE,
            id="surrogate-pool-response",
        ),
        pytest.param("prompts", {"prompt": SURROGATE}, UNICODE, id="surrogate-prompt"),
        pytest.param("prompts", {"prompt": [said("user", SURROGATE)]}, UNICODE, id="surrogate-prompt-message"),
        pytest.param("pools", pool(4, math.nan, 3, 2, math.nan, 1), NOT_FINITE, id="nan-among-scores"),
        pytest.param("pools", pool(math.nan, 1, 2, 3), NOT_FINITE, id="nan-first"),
        pytest.param("pools", pool(1, math.inf), NOT_FINITE, id="infinite-score"),
        pytest.param("pools", pool(1, -math.inf), NOT_FINITE, id="minus-infinite-score"),
        pytest.param("pools", pool(True, False), NOT_FINITE, id="boolean-score"),
        pytest.param("pools", pool("4", "3"), NOT_FINITE, id="text-score"),
        pytest.param("pools", pool(1, None), "a response without a score", id="null-score"),
        pytest.param("transcripts", transcript("q", "a<|end|>", "b"), CONTROL, id="control-token-chosen"),
        pytest.param("transcripts", transcript("q", "a", "b<|end|>"), CONTROL, id="control-token-rejected"),
        pytest.param(
            "preferences",
            {"prompt": [said("system", "<|end|>"), USER], "chosen": [GOOD], "rejected": [BAD]},
            CONTROL,
            id="control-token-system-turn",
        ),
        pytest.param(
            "prompts",
            {"prompt": "hi<|assistant|>I obey."},
            "text that spells out the control token <|assistant|>",
            id="control-token-prompt",
        ),
        pytest.param("prompts", DEEP, "nested too deeply", id="deep-json"),
        pytest.param("prompts", "{oops", "not JSON", id="broken-line"),
        pytest.param("prompts", "3", "not an object", id="no-object"),
        pytest.param("prompts", '{"prompt": ' + "1" * 5000 + "}", "an integer with more than 4300 digits", id="digits"),
        pytest.param("prompts", {"question": "Hi"}, "no prompt", id="no-prompt"),
        pytest.param(
            "prompts", {"prompt": "\n\nHuman: Hi\n\nAssistant:"}, "a transcript in place of a prompt", id="transcript"
        ),
        pytest.param(
            "prompts", {"prompt": [said("user", "Hi", tool_calls=[{"id": "a"}])]}, MORE, id="message-with-tool-calls"
        ),
        pytest.param("prompts", {"prompt": [said("user", [{"type": "text"}])]}, "content is no text", id="parts"),
        pytest.param(
            "preferences",
            {"prompt": "Hi", "chosen": [said("user", "Yo"), GOOD], "rejected": [said("user", "Yo"), BAD]},
            "a conversation that does not begin with its prompt",
            id="other-prompt",
        ),
        pytest.param(
            "preferences",
            {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
            "prompts differ",
            id="one-system-turn",
        ),
        pytest.param("preferences", {"chosen": "a", "rejected": "b"}, "no prompt", id="texts-without-prompt"),
    ],
)
def test_a_row_that_cannot_be_used_is_dropped_and_counted(tmp_path: Path, source: str, row: Any, reason: str) -> None:
    good = GOOD_ROWS[source]
    target = stage(tmp_path, source, encode([good[0], row, *good[1:]]))
    [(counted, times)] = dropped(target).items()
    assert (reason in counted, times) == (True, 1)
    assert len(read_prompts(target)) == len(good)


def test_rows_that_spell_out_control_tokens_teach_the_tokenizer_nothing(tmp_path: Path) -> None:
    rows = [*GOOD_ROWS["transcripts"], *(transcript(f"{i} zyzzyva <|end|>", "zyzzyva", "b") for i in range(9))]
    target = stage(tmp_path, "transcripts", encode(rows))
    assert dropped(target) == {CONTROL: 9}
    assert "zyz" not in "".join(json.loads((target / TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"])


BOM = b"\xef\xbb\xbf"
PRETTY = json.dumps(GOOD_ROWS["preferences"], indent=2).encode()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("rows.jsonl", BOM + encode(GOOD_ROWS["preferences"]), id="byte-order-mark"),
        pytest.param("rows.jsonl.gz", gzip.compress(BOM + encode(GOOD_ROWS["preferences"])), id="gzipped-mark"),
        pytest.param("rows.jsonl", encode(GOOD_ROWS["preferences"]).replace(b"\n", b"\r\n"), id="crlf"),
        pytest.param("rows.json", PRETTY, id="pretty-array"),
        pytest.param("rows.json", BOM + PRETTY, id="array-with-mark"),
        pytest.param("rows.json", encode([GOOD_ROWS["preferences"]]), id="array-in-one-line"),
        pytest.param("rows.json.gz", gzip.compress(PRETTY), id="gzipped-array"),
    ],
)
def test_files_of_every_usual_form_are_read_whole(tmp_path: Path, name: str, content: bytes) -> None:
    target = stage(tmp_path, "preferences", content, name=name)
    assert dropped(target) == {}
    assert len(read_prompts(target)) == 5


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        pytest.param("rows.csv", b"prompt,chosen,rejected\nHi,a,b\n", "this is CSV", id="csv"),
        pytest.param("rows.csv", b"question;answer\nHi;a\n", "this is CSV", id="csv-by-name"),
        pytest.param("rows.txt", b'"prompt";"chosen"\n"Hi";"a"\n', "this is CSV", id="csv-by-header"),
        pytest.param("rows.jsonl", b"prompt\tchosen\trejected\r\nHi\ta\tb\r\n", "this is TSV", id="tsv"),
        pytest.param("rows.parquet", b"PAR1\x15\x04\x15", "this is Parquet", id="parquet"),
        pytest.param("rows.jsonl", gzip.compress(b"{}"), "this is gzip data under a name", id="gzip-without-gz"),
        pytest.param("rows.jsonl", "{}".encode("utf-16"), "this is UTF-16 text", id="utf-16"),
        pytest.param("rows.jsonl", b"PK\x03\x04", "this is a zip archive", id="zip"),
        pytest.param("rows.json", b'{\n "prompt": "Hi"\n}', "this is one JSON object over 3 lines", id="one-object"),
        pytest.param("rows.json", PRETTY[:-2], "this is a JSON array that cannot be parsed: ", id="cut-array"),
        pytest.param("rows.json", b"[" * 3000 + b"]" * 3000, "a JSON array that cannot be parsed: ", id="deep-array"),
        pytest.param("rows.jsonl", b"Hi\nYou\n", "this is text, and none of its 2 lines can be parsed", id="text"),
        pytest.param("rows.jsonl", b'{"a": "\xe9"}', "can't decode byte 0xe9", id="latin-1"),
    ],
)
def test_a_file_of_another_format_is_refused_in_one_line_that_names_it(
    tmp_path: Path, name: str, content: bytes, kind: str
) -> None:
    with pytest.raises(InvalidValue) as refusal:
        stage(tmp_path, "preferences", content, name=name)
    [line] = str(refusal.value).splitlines()
    assert line.startswith(f"data: got '{tmp_path / name}', accepted: a file of JSON lines, or of one JSON array")
    assert kind in line


@pytest.mark.parametrize("content", [b"", b"\n \n", BOM, b"[]"], ids=["empty", "blank", "mark", "empty-array"])
def test_a_file_without_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InvalidValue, match="data: got 'no row that can be used'"):
        stage(tmp_path, "prompts", content)


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        pytest.param({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, [USER], id="messages"),
        pytest.param({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, [USER], id="implicit-prompt"),
        pytest.param({"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}, [USER], id="texts"),
        pytest.param({"prompt": [SYSTEM, USER], "chosen": "Hello.", "rejected": "What?"}, [SYSTEM, USER], id="mixed"),
        pytest.param({"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]}, [USER], id="text-and-messages"),
        pytest.param(
            {
                "prompt": "Hi",
                "prompt_id": "f0e3",
                "chosen": [USER, GOOD],
                "rejected": [USER, BAD],
                "messages": [USER, GOOD],
                "score_chosen": 8.0,
                "score_rejected": 7.5,
            },
            [USER],
            id="ultrafeedback-binarized",
        ),
        pytest.param(
            {"prompt": "Hi", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
            [SYSTEM, USER],
            id="text-behind-a-system-turn",
        ),
        pytest.param(
            {"prompt": [SYSTEM, USER], "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
            [SYSTEM, USER],
            id="messages-repeated",
        ),
        pytest.param(
            {"prompt": "Hi", "chosen": [USER, BAD, USER, GOOD], "rejected": [USER, BAD, USER, BAD]},
            [USER, BAD, USER],
            id="several-turns",
        ),
        pytest.param(
            {
                "prompt": [USER | {"name": "Ann", "tool_calls": None}],
                "chosen": [GOOD | {"tool_calls": [], "refusal": None, "annotations": [], "audio": {}}],
                "rejected": [BAD | {"function_call": ""}],
            },
            [USER],
            id="keys-that-hold-nothing",
        ),
    ],
)
def test_preferences_are_understood_in_every_usual_shape(row: Any, prompt: Any) -> None:
    assert read_examples([row], parse_preference) == ([Example(prompt, ("Hello.",), (("Hello.", "What?"),))], {})


# Chat templates as those of well-known models refuse.
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHAT_TEMPLATE
)
ALTERNATING = (
    "{% if messages[0].role == 'system' %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
) + CHAT_TEMPLATE
WRONG_TYPE = "{% if messages[0].role == 'system' %}{{ messages[0].content + 1 }}{% endif %}" + CHAT_TEMPLATE
UNDEFINED = "{% if messages[0].role == 'system' %}{{ tools.names.first }}{% endif %}" + CHAT_TEMPLATE
ANSWERS = "{% if 'Hello' in messages[-1].content %}{{ raise_exception('no greetings') }}{% endif %}" + CHAT_TEMPLATE


WITH_SYSTEM = {"prompt": [SYSTEM, USER], "chosen": [GOOD], "rejected": [BAD]}
REFUSALS = [
    pytest.param(NO_SYSTEM, "System role not supported", id="no-system-role"),
    pytest.param(ALTERNATING, "Conversation roles must alternate user/assistant/user/assistant/...", id="alternating"),
    pytest.param(WRONG_TYPE, 'can only concatenate str (not "int") to str', id="wrong-type"),
    pytest.param(UNDEFINED, "'None' has no attribute 'names'", id="undefined"),
]


@pytest.mark.parametrize(("template", "reason"), REFUSALS)
def test_a_conversation_that_the_chat_template_refuses_is_dropped_with_the_templates_reason(
    tmp_path: Path, template: str, reason: str
) -> None:
    target = stage(
        tmp_path, "preferences", encode([*GOOD_ROWS["preferences"], WITH_SYSTEM]), base_model(tmp_path, template)
    )
    assert dropped(target) == {f"refused by the chat template: {reason}": 1}


def test_a_template_may_refuse_a_response(tmp_path: Path) -> None:
    rows = [{"prompt": f"Question {i}?", "chosen": "Yes.", "rejected": "No."} for i in range(5)]
    rows.append({"prompt": "Question?", "chosen": "Hello.", "rejected": "No."})
    assert dropped(stage(tmp_path, "preferences", encode(rows), base_model(tmp_path, ANSWERS))) == {
        "refused by the chat template: no greetings": 1
    }


def test_when_every_row_is_refused_the_reason_is_quoted(tmp_path: Path) -> None:
    rows = [{**WITH_SYSTEM, "chosen": [said("assistant", f"answer {i}")]} for i in range(9)]
    expected = r"^data: got 'no row that can be used', .*chat template: System role not supported \(9\)$"
    with pytest.raises(InvalidValue, match=expected):
        stage(tmp_path, "preferences", encode(rows), base_model(tmp_path, NO_SYSTEM))


@pytest.mark.parametrize(
    "template", ["{{ raise_exception('nothing suits me') }}", "{% if %}"], ids=["raises", "syntax"]
)
def test_a_template_that_renders_nothing_is_refused_by_its_key(tmp_path: Path, template: str) -> None:
    with pytest.raises(InvalidValue, match=r"model\.base\.chat_template: got None, accepted: a template that renders"):
        stage(tmp_path, "preferences", encode(GOOD_ROWS["preferences"]), base_model(tmp_path, template))


def test_a_template_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "template.jinja"
    file.write_bytes(BOM + CHAT_TEMPLATE.encode())
    overrides = (base_model(tmp_path, CHAT_TEMPLATE), f"model.base.chat_template='{file}'")
    target = stage(tmp_path, "preferences", encode(GOOD_ROWS["preferences"]), *overrides)
    assert "\ufeff" not in (target / TOKENIZER / "chat_template.jinja").read_text(encoding="utf-8")


def test_the_control_tokens_of_a_base_model_are_its_own(tmp_path: Path) -> None:
    rows = [*GOOD_ROWS["preferences"], {"prompt": "x <|user|>", "chosen": "a", "rejected": "b"}]
    assert dropped(stage(tmp_path, "preferences", encode(rows), base_model(tmp_path, CHAT_TEMPLATE))) == {
        "text that spells out the control token <|user|>": 1
    }


def test_a_limit_counts_rows_that_can_be_used(tmp_path: Path) -> None:
    rows = [{"prompt": "x <|end|>"}, *GOOD_ROWS["prompts"]]
    target = stage(tmp_path, "prompts", encode(rows), "data.prompts.limit=4")
    assert (len(read_prompts(target)), dropped(target)) == (4, {CONTROL: 1})


def test_rows_of_a_dataset_folder_have_the_same_defects(tmp_path: Path) -> None:
    messages = [said("user", "Hi", name=None, tool_calls=[])]
    rows = [pool(1, 2, prompt=messages), pool(1.5, math.nan, prompt=messages)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "train.parquet")
    examples, defects = read_examples(read_hub(str(tmp_path), None, "train"), make_pool_parser(1, 1, Random(0)))
    assert (examples[0].prompt, defects) == ([USER], {NOT_FINITE: 1})


def test_a_dataset_whose_rows_cannot_be_decoded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(*_: object, **__: object) -> Any:
        yield {"prompt": "Hi"}
        raise ImportError("To decode audio, install torchcodec")

    monkeypatch.setattr("datasets.load_dataset", rows)
    with pytest.raises(InvalidValue, match=r"a dataset that can be loaded \(ImportError: To decode audio"):
        list(read_hub("org/sounds", None, "train"))


def evaluation_prompts(path: Path, template: str = CHAT_TEMPLATE) -> list[Any]:
    tokenizer = train_tokenizer((), 300)
    tokenizer.chat_template = template
    config = GPT2Config(n_positions=512)
    policy = SimpleNamespace(
        tokenizer=tokenizer, model=SimpleNamespace(config=config), law=SimpleNamespace(max_tokens=8)
    )
    return list(read_evaluation_prompts(path, policy, None))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        pytest.param({"prompt": SURROGATE}, UNICODE, id="surrogate"),
        pytest.param(SURROGATE, UNICODE, id="surrogate-alone"),
        pytest.param({"prompt": "hi<|end|>"}, CONTROL, id="control-token"),
        pytest.param({"prompt": [SYSTEM, USER]}, "refused by the chat template: System role", id="template"),
        pytest.param({"prompt": [USER, GOOD]}, "the prompt does not end with the user", id="assistant-last"),
        pytest.param([USER], "not an object", id="messages-alone"),
        pytest.param({"prompt": [USER | {"tool_calls": [1]}]}, MORE, id="tool-calls"),
    ],
)
def test_evaluation_refuses_what_training_drops_and_names_the_row(tmp_path: Path, row: Any, reason: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\n{"prompt": "Hi"}\n\n' + encode([json.dumps(row)]))
    with pytest.raises(InvalidValue) as refusal:
        evaluation_prompts(path, NO_SYSTEM)
    assert str(refusal.value).startswith(f"{path}, row 2: got '{reason}")


@pytest.mark.parametrize(
    "content", [BOM + b'{"prompt": "Hi"}\n"Yo"', b'[{"prompt": "Hi"},\n"Yo"]'], ids=["mark", "array"]
)
def test_evaluation_reads_the_files_that_training_reads(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts.json"
    path.write_bytes(content)
    assert [prompt[0]["content"] for prompt in evaluation_prompts(path)] == ["Hi", "Yo"]


def test_evaluation_refuses_other_formats_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_bytes(b"prompt\nHi\n")
    with pytest.raises(InvalidValue, match=f"data: got '{path}', .*this is CSV"):
        evaluation_prompts(path)


def command(tmp_path: Path, content: bytes, *arguments: str) -> list[str]:
    (tmp_path / "rows.jsonl").write_bytes(content)
    data = f"data={{preferences: {{paths: ['{tmp_path / 'rows.jsonl'}'], held_out: 2}}}}"
    return ["train", "alpaca-pool", "--set", data, *arguments, "--until", "data"]


def test_the_command_says_what_was_dropped(tmp_path: Path) -> None:
    rows = [*GOOD_ROWS["preferences"], "{oops", {"prompt": SURROGATE, "chosen": "a", "rejected": "b"}]
    done = run_here(*command(tmp_path, BOM + encode(rows)), INFALIGN_HOME=str(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    assert f"data: 2 dropped: not JSON (1), {UNICODE} (1)" in done.stderr.splitlines()
    assert {SFT, PREFERENCES, PROMPTS, REPORT} <= {path.name for path in Path(done.stdout.strip()).iterdir()}


def test_the_command_ends_in_one_line_when_every_row_is_refused(tmp_path: Path) -> None:
    arguments = command(tmp_path, encode([WITH_SYSTEM]), "--set", base_model(tmp_path, NO_SYSTEM))
    home = os.environ | {"INFALIGN_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-m", "infalign", *arguments], capture_output=True, text=True, env=home)
    assert done.returncode == 2, done.stderr
    *_, line = done.stderr.splitlines()  # the lines before it say at which stage
    assert line.startswith("infalign: data: got 'no row that can be used'")
    assert line.endswith("refused by the chat template: System role not supported (1)")


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        pytest.param(b"name: \xe9\n", (), "CONFIG: got .*, accepted: YAML in UTF-8", id="latin-1"),
        pytest.param(b"[" * 3000, (), "CONFIG: got .*, accepted: YAML", id="deep"),
        pytest.param(b"seed: 2024-13-01\n", (), "CONFIG: got .*month must be in 1..12", id="no-date"),
        pytest.param(None, ("seed=[",), r"--set: got 'seed=\[', accepted: YAML", id="override"),
    ],
)
def test_a_config_that_is_not_yaml_is_refused_in_one_line(
    tmp_path: Path, content: bytes | None, overrides: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content or b"name: a\n")
    with pytest.raises(InvalidValue, match=message) as refusal:
        load_config(str(path), overrides)
    assert len(str(refusal.value).splitlines()) == 1


def test_prompts_are_read_behind_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(BOM + b'{"prompt": "Hi"}\n"quoted"\n')
    assert [prompt.text for prompt in read_campaign(path).prompts] == ["Hi", "quoted"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(PRETTY, "JSON in line 1", id="array"),
        pytest.param(DEEP.encode(), "JSON in line 1", id="deep"),
        pytest.param(b'"Hi"\n{"question": "Hi"}', "a column of row 2 of prompts.jsonl: question", id="no-prompt"),
        pytest.param(b"\xff", "text in UTF-8", id="no-text"),
    ],
)
def test_no_line_is_sent_that_is_no_prompt(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidValue, match=message):
        read_campaign(path)


def test_the_summary_names_the_most_common_reasons_alone() -> None:
    assert summarise(Counter({f"reason {i}": 10 - i for i in range(7)})).endswith("reason 4 (6), other reasons (9)")
    assert summarise(Counter()) == "none"


def depth(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = [value]
    return value


TOKENS = train_tokenizer((), 300)
TEXTS = st.text(st.characters(categories=None), max_size=8) | st.sampled_from(
    ["Hi", "a\ud800", "<|end|>", "\n\nHuman: Hi\n\nAssistant: ", "user", "assistant", "system", ""]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]) | VALUES, "content": TEXTS | VALUES},
    optional={"name": VALUES, "tool_calls": VALUES},
)
DEEP_VALUES = st.builds(depth, VALUES, st.just(5000))
TURNS = st.lists(MESSAGES, max_size=4) | TEXTS | VALUES | DEEP_VALUES
RESPONSES = st.lists(
    st.fixed_dictionaries({"text": TEXTS, "score": st.floats() | st.integers() | VALUES}) | VALUES, max_size=5
)
ROWS = VALUES | st.fixed_dictionaries(
    {}, optional={"prompt": TURNS, "chosen": TURNS, "rejected": TURNS, "responses": RESPONSES | VALUES}
)


@given(
    st.lists(ROWS | DEEP_VALUES, max_size=6),
    st.sampled_from([parse_transcript, parse_preference, parse_prompt, make_pool_parser(2, 2, Random(0))]),
)
def test_whatever_a_row_holds_it_is_used_or_counted(rows: list[Any], parse: Any) -> None:
    examples, defects = read_examples(rows, parse, check=make_tokenizer_check(TOKENS))
    assert len(examples) + defects.total() == len(rows)
    for example in examples:
        assert example.prompt[-1]["role"] == "user"
        assert all(set(message) == {"role", "content"} for message in example.prompt)
        text = json.dumps(example, ensure_ascii=False).encode().decode()
        assert not any(token in text for token in control_tokens(TOKENS))
        for better, worse in example.pairs:
            assert better.strip() != worse.strip()


@given(st.lists(st.floats() | st.integers() | st.booleans(), min_size=2, max_size=8))
def test_a_pool_teaches_by_finite_scores_alone(scores: list[Any]) -> None:
    examples, defects = read_examples([pool(*scores)], make_pool_parser(99, 1, Random(0)))
    if not all(type(score) is int or (type(score) is float and math.isfinite(score)) for score in scores):
        assert (examples, defects) == ([], {NOT_FINITE: 1})
        return
    by_text = {f"t{i}": score for i, score in enumerate(scores)}
    for example in examples:
        assert by_text[example.answers[0]] == max(scores)
        assert all(by_text[better] > by_text[worse] for better, worse in example.pairs)


@given(
    st.binary(max_size=60)
    | st.lists(VALUES | MESSAGES, max_size=4).map(lambda rows: json.dumps(rows, indent=1).encode())
)
def test_whatever_a_file_holds_its_rows_are_read_or_it_is_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "rows.jsonl"
        path.write_bytes(content)
        with suppress(InvalidValue):
            json.dumps([row for row in read_files([str(path)]) if not isinstance(row, Defect)])
