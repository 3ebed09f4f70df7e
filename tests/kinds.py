"""Every kind of reward, each on models of a few thousand random weights, and what tests show to work with it.

A test that runs a kind says so with the mark ``cells``. The table in the documentation is made of these marks
(``tools/reward_kinds.py``), so a new kind is one more entry of ``KINDS``.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from training.config import Scratch
from training.models import new_model, read_causal
from training.tokenizer import train_tokenizer

POSITIONS = 128
"""Context of the models, in tokens; a token is about a character."""


@dataclass(frozen=True)
class Kind:
    """A kind of reward."""

    title: str
    """How the documentation calls it."""
    section: str
    """Its key in the section ``reward`` of a config."""
    entry: Mapping[str, Any]
    """The entry there; ``{models}`` is the folder of :func:`make_models`, ``{url}`` the address of :func:`answer`."""
    takes_engine: bool = False
    """Whether the server runs an engine for it, or asks a vLLM server in its place."""


RUBRIC = {"rubric": "{response}?", "scores": {"a": 1, "b": 2, "c": 3}}
LONG_RUBRIC = f"{' a b c d e' * 5} {{response}}?"
"""It is longer than a block of vLLM's prefix cache."""
BETTER = {"higher_is": "better"}
KINDS = {
    "classifier": Kind("classifier", "classifiers", BETTER | {"path": "{models}/reward"}, True),
    "label": Kind("one label of several", "classifiers", BETTER | {"path": "{models}/labels", "label": "good"}, True),
    "text": Kind(
        "classifier with a `text`",
        "classifiers",
        BETTER | {"path": "{models}/plain", "text": "{prompt}>{response}"},
        True,
    ),
    "judge": Kind("judge", "judges", RUBRIC | {"path": "{models}/judge"}, True),
    "reference-judge": Kind("judge that is the reference", "reference_judges", RUBRIC | {"rubric": LONG_RUBRIC}),
    "remote-judge": Kind("judge behind a server", "remote_judges", RUBRIC | {"url": "{url}/v1", "model": "j"}),
    "function": Kind("function", "functions", {"function": "tests.reward_functions:spread"}),
    "rewards": Kind("service", "services", {"url": "{url}/rewards"}),
    "classify": Kind("`/classify` of vLLM", "services", {"url": "{url}/classify", "protocol": "classify"}),
    "pooling": Kind("`/pooling` of vLLM", "services", {"url": "{url}/pooling", "protocol": "pooling"}),
    "score": Kind("`/score` of vLLM", "services", {"url": "{url}/score", "protocol": "score"}),
    "openrlhf": Kind("server of OpenRLHF", "services", {"url": "{url}/openrlhf", "protocol": "openrlhf"}),
}
"""Every kind by its name, which is also the name of the reward."""
COLUMNS = {
    "server": "`infalign serve` with vLLM in process: the rewards of an answer are those that training gives",
    "remote": "the same, with `--policy-urls` and `--reward-urls`",
    "training": "CTRL for two steps, with this reward alone",
    "evaluate": "`infalign evaluate` of that policy, on its test prompts",
    "calibrate": "`infalign calibrate` of further prompts",
    "on demand": '`"calibrate": true` in a request',
    "adapters": "`infalign serve` of a bundle whose policy is a LoRA adapter",
    "drift": "the server's [drift](metrics.md) is small for answers that fit the calibration, and large for others",
}
"""The columns of the table, and what a test of each of them runs."""


def cells(*columns: str, kinds: tuple[str, ...] = tuple(KINDS)) -> Any:
    """The mark of a test that runs kinds of rewards in columns of the table."""
    return pytest.mark.cells(*columns, kinds=kinds)


def marked_tests(*modules: ModuleType) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """The cells that tests of these modules run: the name of the test, the column and the kinds."""
    for module in modules:
        file = f"{module.__name__.replace('.', '/')}.py"
        for name, test in vars(module).items():
            marks = getattr(test, "pytestmark", ()) if name.startswith("test_") else ()
            for mark in (mark for mark in marks if mark.name == "cells"):
                yield from ((f"{file}::{name}", column, mark.kwargs["kinds"]) for column in mark.args)


def section(models: Path, url: str, *kinds: str) -> dict[str, list[dict[str, Any]]]:
    """The section ``reward`` of a config with some kinds."""
    rewards: dict[str, list[dict[str, Any]]] = {}
    for name in kinds:
        text = json.dumps(KINDS[name].entry | {"name": name})
        entry = json.loads(text.replace("{models}", str(models)).replace("{url}", url))
        rewards.setdefault(KINDS[name].section, []).append(entry)
    return rewards


def make_models(folder: Path) -> Path:
    """A policy, an adapter on it, classifiers and a judge.

    Returns:
        The folder.
    """
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["why and how, a b c d e"], 300)
    sizes = Scratch(vocabulary=300, hidden=32, layers=1, positions=POSITIONS)
    policy = new_model(tokenizer, sizes)
    config = policy.config.to_dict()
    labels = {"id2label": {0: "good", 1: "bad", 2: "odd"}, "label2id": {"good": 0, "bad": 1, "odd": 2}}
    models = {
        "policy": policy,
        "judge": new_model(tokenizer, sizes),
        "reward": LlamaForSequenceClassification(LlamaConfig.from_dict(config | {"num_labels": 1})),
        "labels": LlamaForSequenceClassification(LlamaConfig.from_dict(config | labels)),
        "plain": LlamaForSequenceClassification(LlamaConfig.from_dict(config | {"num_labels": 1})),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    plain = AutoTokenizer.from_pretrained(folder / "plain")
    plain.chat_template = None
    (folder / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    plain.save_pretrained(folder / "plain")
    adapter = get_peft_model(read_causal(folder / "policy"), LoraConfig(r=2, target_modules=["q_proj"]))
    adapter.save_pretrained(str(folder / "adapter"))
    return folder


def spread(text: str) -> float:
    """A number that differs between most texts."""
    return sum(map(ord, text)) % 97 / 97


def answer(body: Mapping[str, Any]) -> dict[str, Any]:
    """What a scoring service says in each protocol, and a judge behind a server."""
    if "top_logprobs" in body:
        share = 0.1 + 0.8 * spread(body["messages"][-1]["content"])
        tokens = [{"token": token, "logprob": math.log(p)} for token, p in (("a", share), ("c", 1 - share))]
        return {
            "choices": [{"logprobs": {"content": [tokens[0] | {"top_logprobs": tokens}]}}],
            "usage": {"total_tokens": 9},
        }
    if "messages" in body:
        outputs = [spread(body["messages"][-1]["content"])]
        return {"data": [{"data" if body.get("task") == "classify" else "probs": outputs}]}
    if "text_1" in body:
        return {"data": [{"score": spread(text)} for text in body["text_2"]]}
    return {"rewards": [spread(text) for text in body.get("responses", body.get("query"))]}
