"""Send every prompt of a file through a decoding endpoint of a running server and print a table.

    python examples/decode_prompts.py prompts.jsonl.gz --limit 200 --n 8

The file holds one prompt a line: plain text, a JSON string, {"prompt": text or messages}, {"messages": [...]} or a
row of HH-RLHF ({"chosen": transcript, ...}, of which everything up to the last "Assistant:" is the prompt). It may
be gzipped. Exit code 0 when every answer was 200 with N scored candidates, or 400 because the prompt is too long;
2 when a line holds no prompt.
"""

import argparse
import asyncio
import gzip
import json
import re
import statistics
import sys
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

Message = dict[str, str]
TURN = re.compile(r"\n\n(Human|Assistant): ?")
ROLES = {"Human": "user", "Assistant": "assistant"}


def read_prompts(path: Path, limit: int | None) -> list[list[Message]]:
    """The first ``limit`` prompts of a file as chat messages.

    Raises:
        ValueError: a line holds no prompt, or the file is no text.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig") as lines:
        rows = [(number, line.rstrip("\n")) for number, line in enumerate(lines, 1) if line.strip()]
    return [_messages(number, row) for number, row in rows[:limit]]


def _messages(number: int, line: str) -> list[Message]:
    row: Any = line
    if line.lstrip().startswith(("{", "[", '"')):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not line.lstrip().startswith('"'):  # a text may begin with a quotation
                raise ValueError(f"line {number} looks like JSON, and cannot be parsed ({error})") from error
    if isinstance(row, dict):
        if isinstance(row.get("chosen"), str):
            return _transcript(row["chosen"].rpartition("\n\nAssistant:")[0])
        row = row.get("messages", row.get("prompt"))
    if not isinstance(row, (str, list)):
        raise ValueError(f"line {number} has no prompt")
    return row if isinstance(row, list) else [{"role": "user", "content": row}]


def _transcript(text: str) -> list[Message]:
    """Turns of "Human:" and "Assistant:", each after an empty line, as messages."""
    parts = TURN.split(text)
    return [{"role": ROLES[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)]


async def decode_all(
    url: str, prompts: list[list[Message]], n: int, concurrency: int
) -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """(status, body) of each prompt, for both endpoints."""
    gate = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:

        async def one(endpoint: str, messages: list[Message]) -> tuple[int, dict[str, Any]]:
            async with gate:
                body = {"messages": messages, "n": n, "return_candidates": True}
                # json= would fail on text that is not valid Unicode; sent escaped, it is refused like any bad prompt
                headers = {"content-type": "application/json"}
                response = await client.post(f"/v1/{endpoint}", content=json.dumps(body), headers=headers)
                return response.status_code, response.json()

        return {
            endpoint: await asyncio.gather(*(one(endpoint, messages) for messages in prompts))
            for endpoint in ("best-of-n", "worst-of-n")
        }


def report(endpoint: str, answers: list[tuple[int, dict[str, Any]]], n: int) -> bool:
    """Print one endpoint's row; false if an answer was neither complete nor a refusal of a long prompt."""
    outcomes: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    quantiles, scopes = [], Counter()
    for status, body in answers:
        if status == 200 and len(body["candidates"]) == n:
            outcomes["scored"] += 1
            quantiles.append(body["selected"][0]["quantile"])
            scopes[body["calibration"]["scope"]] += 1
        elif status == 400 and body["error"]["code"] == "context_length_exceeded":
            outcomes["too long"] += 1
        else:
            outcomes["failed"] += 1
            failures[f"{status} {json.dumps(body)[:200]}"] += 1
    mean = f"{statistics.mean(quantiles):.3f}" if quantiles else "-"
    scope = ", ".join(f"{count} {name}" for name, count in scopes.items()) or "-"
    print(
        f"{endpoint:<11} {len(answers):>7} {outcomes['scored']:>7} {outcomes['too long']:>9} {outcomes['failed']:>7} "
        f"{mean:>14}  {scope}"
    )
    for failure, count in failures.items():
        print(f"{endpoint}: {count} times {failure}", file=sys.stderr)
    return not failures


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--limit", type=int, help="only the first LIMIT prompts")
    parser.add_argument("--n", type=int, default=8, help="candidates per prompt")
    parser.add_argument("--concurrency", type=int, default=8, help="requests under way at a time")
    options = parser.parse_args()
    try:
        prompts = read_prompts(options.file, options.limit)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        print(f"{options.file}: {error}", file=sys.stderr)
        return 2
    answers = asyncio.run(decode_all(options.url, prompts, options.n, options.concurrency))
    print("endpoint    prompts  scored  too long  failed  mean quantile  calibration")
    results = [report(endpoint, found, options.n) for endpoint, found in answers.items()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
