"""The model and the files that the runs read."""

import json
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from experiments.real.configs import PROMPT, RESPONSE, inputs, policy_config
from experiments.real.tasks import MEASURED, METHODS, PARTS, Comparison, Settings, Task
from infalign.home import home


def prepare_model(source: str) -> str:
    """Return the directory of the model. A GGUF file is converted, unless it has been."""
    from training import gguf

    file = Path(source)
    if file.suffix != gguf.SUFFIX:
        return str(file.absolute()) if file.exists() else source
    directory = home() / "real" / file.stem
    if not directory.is_dir():
        gguf.convert(file, directory, "--model")
    return str(directory)


def prepare_task(task: Task, file: Path, settings: Settings) -> dict[str, int]:
    """Write the files of a task, and count what is in them.

    Responses are cut to the length of a policy's. The stage ``data`` chooses the prompts for validation and test from
    ``policy.jsonl``. The comparisons of all other prompts go to ``reward.jsonl`` and ``judge.jsonl``.
    """
    from infalign.templates import render_prompt, tokenise
    from training.data import read_prompts
    from training.pipeline import run_stages
    from training.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(settings.model, "--model", "a causal LM")

    @cache
    def cut(text: str) -> str:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        return str(tokenizer.decode(tokens[:RESPONSE])).strip()

    random = Random(task.name)
    by_prompt: dict[str, list[Comparison]] = defaultdict(list)
    for comparison in task.read(file, random):
        chosen, rejected = cut(comparison.chosen), cut(comparison.rejected)
        if chosen and rejected and chosen != rejected:
            by_prompt[_key(comparison.prompt)].append(comparison._replace(chosen=chosen, rejected=rejected))
    short = [
        key
        for key, group in by_prompt.items()
        if len(tokenise(tokenizer, render_prompt(tokenizer, group[0].prompt))) <= PROMPT
    ]
    random.shuffle(short)
    chosen_keys = short[: min(task.prompts, settings.prompts or task.prompts)]
    _write_rows(inputs(task) / "policy.jsonl", (c for key in chosen_keys for c in by_prompt[key][::MEASURED]))
    data = run_stages(policy_config(task, METHODS[0], settings), home() / "runs", until="data").data
    splits = {split: read_prompts(data, split) for split in ("train", "validation", "test")}
    held_out = {_key(prompt) for split in ("validation", "test") for prompt in splits[split]}
    counts = {split: len(prompts) for split, prompts in splits.items()}
    for half, part in enumerate(PARTS):
        rows = [c for key, group in by_prompt.items() if key not in held_out for c in group if c.half == half]
        _write_rows(inputs(task) / f"{part}.jsonl", rows)
        counts[part] = len(rows)
    return counts


def _key(prompt: Iterable[Any]) -> str:
    return json.dumps([[message["role"], message["content"]] for message in prompt])


def _write_rows(file: Path, comparisons: Iterable[Comparison]) -> None:
    """Write comparisons as preferences, in the format that ``data.preferences`` reads."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as stream:
        for c in comparisons:
            sides = {name: [{"role": "assistant", "content": getattr(c, name)}] for name in ("chosen", "rejected")}
            stream.write(json.dumps({"prompt": c.prompt, **sides}, ensure_ascii=False) + "\n")
