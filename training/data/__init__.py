"""Stage ``data``: what a run is trained and validated on."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import TypeVar

from transformers import PreTrainedTokenizerBase

from infalign.errors import TemplateRefusal
from infalign.templates import (
    Rendering,
    Tokenizer,
    control_tokens,
    render_judged,
    render_prompt,
    render_text,
    tokenise,
)
from training.config import Base, DataConfig, Scratch
from training.data import examples, helpdesk
from training.data.defects import Defect, summary
from training.data.examples import Example
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
    "tokenizer_check",
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
    """Read or generate the data, settle its tokenizer, and write what can be used of it all into ``directory``.

    What was dropped is counted by reason in the report, and in one line on stderr.

    Raises:
        InvalidValue: there is no such data, too little of it, or a base model whose tokenizer cannot be used.
    """
    origin = config.model.origin
    # From scratch, the control tokens and the template are known before the vocabulary is.
    tokenizer = base_tokenizer(origin) if isinstance(origin, Base) else train_tokenizer((), origin.vocabulary)
    material = _material(config, tokenizer_check(tokenizer))
    if isinstance(origin, Scratch):
        texts = (text for answer in material.answers for text in (*(m["content"] for m in answer.prompt), answer.text))
        tokenizer = train_tokenizer(texts, origin.vocabulary)
    _drop_long(material, tokenizer, config.model.positions, config.rollouts.max_tokens)
    needed = ["train", "validation", "test"]
    needed += ["answers"] if config.sft else []
    needed += ["comparisons", "held_out"] if config.reward.train else []
    material.check(needed)
    tokenizer.save_pretrained(directory / TOKENIZER)
    material.write(directory)
    if material.defects:
        print(f"data: {material.defects.total()} dropped: {summary(material.defects)}", file=sys.stderr)


def tokenizer_check(tokenizer: Tokenizer) -> Callable[[Example], None]:
    """A check that ``tokenizer`` reads an example as it is meant; the check raises :class:`Defect`.

    Text that spells out a control token would become that token, and forge or end a turn. A chat template may refuse
    a conversation, for example one with a system message.
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
                render_judged(tokenizer, example.prompt, response)
        except TemplateRefusal as refusal:
            raise Defect(f"refused by the chat template: {refusal}") from refusal

    return check


def _material(config: DataConfig, check: Callable[[Example], None]) -> Material:
    source, seed = config.data.source, config.seed
    if config.data.helpdesk:
        return helpdesk.material(config.data.helpdesk, seed)
    files = config.data.files
    rows = hub(files.hub, files.subset, files.split) if files.hub else lines(files.paths)
    if config.data.pools:
        parse = examples.pools(config.data.pools.pairs, config.data.pools.answers, Random(seed))
    else:
        parse = PARSERS[source]
    found, defects = examples.read(rows, parse, files.limit, check)
    return split(found, files.held_out, seed, defects)


def _drop_long(material: Material, tokenizer: PreTrainedTokenizerBase, positions: int, room: int) -> None:
    """Drop prompts that leave no ``room`` for a response, and responses that do not fit behind their prompt."""
    lengths: dict[Rendering, int] = {}

    def measured(rendering: Rendering) -> int:
        if rendering not in lengths:
            lengths[rendering] = len(tokenise(tokenizer, rendering))
        return lengths[rendering]

    def length(text: str) -> int:
        return measured(render_text(tokenizer, text))

    def kept(group: list[Item], size: Callable[[Item], int], what: str) -> list[Item]:
        fitting = [item for item in group if size(item) <= positions]
        if len(fitting) < len(group):
            material.defects[f"{what} too long"] += len(group) - len(fitting)
        material.lengths[what] += map(size, fitting)
        return fitting

    def asked(prompt: object) -> int:
        return measured(render_prompt(tokenizer, prompt))  # type: ignore[arg-type]

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
