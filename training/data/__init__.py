"""Stage ``data``: what a run is trained and validated on."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from infalign.templates import render_prompt, tokenise
from training.config import Base, DataConfig
from training.data import examples, helpdesk
from training.data.files import hub, lines
from training.data.rows import HELD_OUT, PREFERENCES, PROMPTS, SFT, Material, read_prompts, read_rows, split
from training.lengths import REPORT, read_lengths
from training.tokenizer import base_tokenizer, train_tokenizer

__all__ = [
    "HELD_OUT",
    "PREFERENCES",
    "PROMPTS",
    "REPORT",
    "SFT",
    "TOKENIZER",
    "read_lengths",
    "read_prompts",
    "read_rows",
    "write_data",
]

TOKENIZER = "tokenizer"
PARSERS = {
    "transcripts": examples.transcripts,
    "preferences": examples.preferences,
    "prompts": examples.prompts,
}
Item = TypeVar("Item")


def write_data(directory: Path, config: DataConfig) -> None:
    """Read or generate the data, settle its tokenizer, drop what is too long, and write it all into ``directory``.

    Raises:
        InvalidValue: there is no such data, too little of it, or a base model whose tokenizer cannot be used.
    """
    material = _material(config)
    origin = config.model.origin
    if isinstance(origin, Base):
        tokenizer = base_tokenizer(origin)
    else:
        texts = (text for answer in material.answers for text in (*(m["content"] for m in answer.prompt), answer.text))
        tokenizer = train_tokenizer(texts, origin.vocabulary)
    _drop_long(material, tokenizer, config.model.positions, config.rollouts.max_tokens)
    needed = ["train", "validation", "test"]
    needed += ["answers"] if config.sft else []
    needed += ["comparisons", "held_out"] if config.reward.train else []
    material.check(needed)
    tokenizer.save_pretrained(directory / TOKENIZER)
    material.write(directory)


def _material(config: DataConfig) -> Material:
    source, seed = config.data.source, config.seed
    if config.data.helpdesk:
        return helpdesk.material(config.data.helpdesk, seed)
    files = config.data.files
    rows = hub(files.hub, files.subset, files.split) if files.hub else lines(files.paths)
    if config.data.pools:
        parse = examples.pools(config.data.pools.pairs, config.data.pools.answers, Random(seed))
    else:
        parse = PARSERS[source]
    found, defects = examples.read(rows, parse, files.limit)
    return split(found, files.held_out, seed, defects)


def _drop_long(material: Material, tokenizer: PreTrainedTokenizerBase, positions: int, room: int) -> None:
    """Drop prompts that leave no ``room`` for a response, and responses that do not fit behind their prompt."""
    lengths: dict[str, int] = {}

    def length(text: str) -> int:
        if text not in lengths:
            lengths[text] = len(tokenise(tokenizer, text))
        return lengths[text]

    def kept(group: list[Item], size: Callable[[Item], int], what: str) -> list[Item]:
        fitting = [item for item in group if size(item) <= positions]
        if len(fitting) < len(group):
            material.defects[f"{what} too long"] += len(group) - len(fitting)
        material.lengths[what] += map(size, fitting)
        return fitting

    def asked(prompt: object) -> int:
        return length(render_prompt(tokenizer, prompt))  # type: ignore[arg-type]

    material.train = kept(material.train, lambda prompt: asked(prompt) + room, "prompt")
    material.validation = kept(material.validation, lambda prompt: asked(prompt) + room, "prompt")
    material.test = kept(material.test, lambda prompt: asked(prompt) + room, "prompt")
    material.answers = kept(material.answers, lambda a: asked(a.prompt) + length(a.text) + 1, "answer")
    for name in ("comparisons", "held_out"):
        group = kept(
            getattr(material, name),
            lambda c: asked(c.prompt) + max(length(c.chosen), length(c.rejected)) + 1,
            "comparison",
        )
        setattr(material, name, group)
