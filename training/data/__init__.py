"""Stage ``data``: prepares prompts, answers, comparisons and the tokenizer."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from infalign.errors import TemplateRefusal
from infalign.templates import Rendering, render_conversation, render_prompt, render_text, tokenise
from infalign.tokens import Tokenizer, control_tokens
from training.config import Base, DataConfig, Scratch
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
from training.data.helpdesk import make_material
from training.data.rows import HELD_OUT, PREFERENCES, PROMPTS, SFT, Material, read_prompts, read_rows, split_examples
from training.lengths import REPORT, read_lengths
from training.seeds import derive_seed
from training.tokenizer import base_tokenizer, train_tokenizer

__all__ = [
    "HELD_OUT",
    "PREFERENCES",
    "PROMPTS",
    "REPORT",
    "SFT",
    "TOKENIZER",
    "make_tokenizer_check",
    "read_lengths",
    "read_prompts",
    "read_rows",
    "write_data",
]

TOKENIZER = "tokenizer"
"""Directory of the tokenizer."""
PARSERS = {
    "transcripts": parse_transcript,
    "preferences": parse_preference,
    "prompts": parse_prompt,
}
"""Parsers of rows by the key of ``data``. Pools need settings, so they are not here."""
Item = TypeVar("Item")


def write_data(directory: Path, *, config: DataConfig, seed: int) -> None:
    """Read or generate the data, prepare the tokenizer, and write everything into the stage's directory.

    Rows that cannot be used are dropped. The report counts them by reason, and one line on stderr does too.

    Args:
        directory: Directory of the stage.
        config: Where the data comes from and what it is for.
        seed: Seed of the stage.

    Raises:
        InvalidValue: There is no such data or too little of it, or the tokenizer of the base model cannot be used.
    """
    origin = config.model.origin
    # From scratch, the control tokens and the template are known before the vocabulary is.
    tokenizer = base_tokenizer(origin) if isinstance(origin, Base) else train_tokenizer((), origin.vocabulary)
    material = _read_material(config, seed, make_tokenizer_check(tokenizer))
    if isinstance(origin, Scratch):
        texts = (text for answer in material.answers for text in (*(m["content"] for m in answer.prompt), answer.text))
        tokenizer = train_tokenizer(texts, origin.vocabulary)
    _drop_long(material, tokenizer, config.model.positions, config.rollouts.max_tokens)
    parts = ["train"]
    parts += ["validation", "test"] if not config.data.prompts or config.data.prompts.held_out else []
    parts += ["answers"] if config.sft else []
    parts += ["comparisons", "held_out"] if config.reward.train else []
    material.check(parts)
    tokenizer.save_pretrained(directory / TOKENIZER)
    material.write(directory)
    if material.defects:
        print(f"data: {material.defects.total()} dropped: {summarise(material.defects)}", file=sys.stderr)


def make_tokenizer_check(tokenizer: Tokenizer) -> Callable[[Example], None]:
    """Make a function that checks whether a tokenizer reads an example as it is meant.

    Text that spells out a control token would become that token, and so forge or end a turn. A chat template may refuse
    a conversation, for example one with a system message.

    Args:
        tokenizer: The tokenizer.

    Returns:
        A function of an example, which raises :class:`~training.data.defects.Defect` if the example cannot be used.
    """
    control = re.compile("|".join(map(re.escape, sorted(control_tokens(tokenizer), key=len, reverse=True))) or "(?!)")

    def check(example: Example) -> None:
        responses = dict.fromkeys((*example.answers, *(text for pair in example.pairs for text in pair)))
        for text in (*(message["content"] for message in example.prompt), *responses):
            if token := control.search(text):
                raise Defect(f"text that spells out the control token {token[0]}")
        try:
            render_prompt(tokenizer, example.prompt)
            for response in responses:
                render_conversation(tokenizer, example.prompt, response)
        except TemplateRefusal as refusal:
            raise Defect(f"refused by the chat template: {refusal}") from refusal

    return check


def _read_material(config: DataConfig, seed: int, check: Callable[[Example], None]) -> Material:
    """Read or generate everything that the run learns from, before too long sequences are dropped."""
    if config.data.helpdesk:
        return make_material(config.data.helpdesk, seed)
    files = config.data.files
    rows = read_hub(files.hub, files.subset, files.split) if files.hub else read_files(files.paths)
    if config.data.pools:
        parse = make_pool_parser(config.data.pools.pairs, config.data.pools.answers, Random(derive_seed(seed, "pools")))
    else:
        parse = PARSERS[config.data.source]
    usable, defects = read_examples(rows, parse, files.limit, check)
    return split_examples(usable, files.held_out, seed, defects)


def _drop_long(material: Material, tokenizer: PreTrainedTokenizerBase, positions: int, room: int) -> None:
    """Drop prompts that leave less than ``room`` tokens for a response, and responses that do not fit."""
    lengths: dict[Rendering, int] = {}

    def token_count(rendering: Rendering) -> int:
        if rendering not in lengths:
            lengths[rendering] = len(tokenise(tokenizer, rendering))
        return lengths[rendering]

    def text_length(text: str) -> int:
        return token_count(render_text(tokenizer, text))

    def keep_short(group: list[Item], size: Callable[[Item], int], what: str) -> list[Item]:
        short = [item for item in group if size(item) <= positions]
        if len(short) < len(group):
            material.defects[f"{what} too long"] += len(group) - len(short)
        material.lengths[what] += map(size, short)
        return short

    def prompt_length(prompt: object) -> int:
        return token_count(render_prompt(tokenizer, prompt))  # type: ignore[arg-type]

    material.train = keep_short(material.train, lambda prompt: prompt_length(prompt) + room, "prompt")
    material.validation = keep_short(material.validation, lambda prompt: prompt_length(prompt) + room, "prompt")
    material.test = keep_short(material.test, lambda prompt: prompt_length(prompt) + room, "prompt")
    material.answers = keep_short(
        material.answers, lambda a: prompt_length(a.prompt) + text_length(a.text) + 1, "answer"
    )
    for name in ("comparisons", "held_out"):
        group = keep_short(
            getattr(material, name),
            lambda c: prompt_length(c.prompt) + max(text_length(c.chosen), text_length(c.rejected)) + 1,
            "comparison",
        )
        setattr(material, name, group)
