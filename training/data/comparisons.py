"""Comparisons from files or from the hub: HH-RLHF's transcripts, or TRL's conversational preference rows.

Every row that cannot be used is counted by reason, never silently repaired.
"""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from infalign.errors import InvalidValue
from infalign.templates import Message
from training.data.rows import Comparison

TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
LAST = "\n\nAssistant:"


class Defect(Exception):
    """Why a row cannot be used."""


def read(
    rows: Iterable[Any], parse: Callable[[dict[str, Any]], Comparison], limit: int | None = None
) -> tuple[list[Comparison], Counter[str]]:
    """The comparisons of ``rows``, the first ``limit`` that can be used, and the others counted by reason."""
    found: list[Comparison] = []
    defects: Counter[str] = Counter()
    for row in rows:
        if limit is not None and len(found) >= limit:
            break
        try:
            if not isinstance(row, dict):
                raise Defect("not an object")
            comparison = parse(row)
            if not comparison.chosen or not comparison.rejected:
                raise Defect("empty response")
            if comparison.chosen == comparison.rejected:
                raise Defect("equal responses")
            _check_turns(comparison.prompt)
        except Defect as defect:
            defects[str(defect)] += 1
        else:
            found.append(comparison)
    return found, defects


def transcripts(row: dict[str, Any]) -> Comparison:
    """A row of HH-RLHF: two whole transcripts that differ in the last response."""
    sides = []
    for name in ("chosen", "rejected"):
        if not isinstance(row.get(name), str):
            raise Defect(f"no {name} transcript")
        prompt, separator, response = row[name].rpartition(LAST)
        if not separator:
            raise Defect("no response of the assistant")
        if TURN.search(response):
            raise Defect("turns do not alternate")
        sides.append((prompt, response.strip()))
    (prompt, chosen), (other, rejected) = sides
    if prompt != other:
        raise Defect("prompts differ")
    parts = TURN.split(prompt)
    if parts[0].strip():
        raise Defect("text before the first turn")
    messages = [
        {"role": ROLES[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return Comparison(messages, chosen, rejected)


def preferences(row: dict[str, Any]) -> Comparison:
    """A row in TRL's conversational preference format, with an explicit prompt or the common beginning of both."""
    if not all(isinstance(row.get(name), list) and row[name] for name in ("chosen", "rejected")):
        raise Defect("chosen and rejected are not lists of messages")
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = row.get("prompt")
    if prompt is None:
        prompt, chosen, other, rejected = chosen[:-1], chosen[-1:], rejected[:-1], rejected[-1:]
        if prompt != other:
            raise Defect("prompts differ")
    if not isinstance(prompt, list) or len(chosen) != 1 or len(rejected) != 1:
        raise Defect("not one response to a list of messages")
    for message in [*prompt, *chosen, *rejected]:
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise Defect("a message without exactly role and content")
        if not isinstance(message["content"], str):
            raise Defect("a message whose content is no text")
    if chosen[0]["role"] != "assistant" or rejected[0]["role"] != "assistant":
        raise Defect("a response that is not the assistant's")
    return Comparison(prompt, chosen[0]["content"].strip(), rejected[0]["content"].strip())


PARSERS: dict[str, Callable[[dict[str, Any]], Comparison]] = {"transcripts": transcripts, "preferences": preferences}


def lines(paths: Iterable[str]) -> Iterator[Any]:
    """The JSON values of files, gzipped or not; a line that is no JSON comes as None.

    Raises:
        InvalidValue: there is no such file, or it is no text.
    """
    for path in map(Path, paths):
        if not path.is_file():
            raise InvalidValue("data", str(path), "a file of JSON lines, .jsonl or .jsonl.gz")
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            text = content.decode("utf-8")
        except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
            raise InvalidValue("data", str(path), f"UTF-8 text, gzipped if it ends in .gz ({error})") from error
        for line in filter(str.strip, text.split("\n")):
            try:
                yield json.loads(line)
            except ValueError:
                yield None


def hub(name: str, subset: str | None, split: str) -> Iterable[Any]:
    """The rows of a dataset on the hub, or of a local folder that ``datasets`` can load.

    Raises:
        InvalidValue: it cannot be loaded.
    """
    import datasets

    try:
        return datasets.load_dataset(name, data_dir=subset, split=split)  # type: ignore[no-any-return]
    except Exception as error:  # whatever a dataset, the hub or the network raise
        reason = " ".join(str(error).split())[:200]
        raise InvalidValue("data", name, f"a dataset that can be loaded ({type(error).__name__}: {reason})") from error


def _check_turns(prompt: Iterable[Message]) -> None:
    """User and assistant in turn, the user first and last, after at most one system message; no turn empty."""
    messages = list(prompt)
    if messages and messages[0]["role"] == "system":
        messages = messages[1:]
    if not messages:
        raise Defect("empty prompt")
    if any(not message["content"].strip() for message in messages):
        raise Defect("empty turn")
    if any(message["role"] != ("user", "assistant")[turn % 2] for turn, message in enumerate(messages)):
        raise Defect("turns do not alternate")
    if messages[-1]["role"] != "user":
        raise Defect("the prompt does not end with the user")
