"""Tokenizers: a byte-level BPE with a chat template for models from scratch, and that of a base model, checked."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from infalign.errors import InvalidValue, TemplateRefusal, one_line
from infalign.templates import render_judged
from training.config import Base

PAD, END = "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train on ``texts`` up to ``vocabulary`` tokens, bytes and special tokens included."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE, padding_side="left"
    )


def base_tokenizer(base: Base) -> Any:
    """The tokenizer of a base model, with what the config changes of it.

    Raises:
        InvalidValue: there is none, it has no chat template or one that fails, it pads with the token that ends a turn,
            or its template does not end a turn with that token (no response would end).
    """
    tokenizer = read_tokenizer(base.path, "model.base.path", "a causal LM", padding_side="left")
    set_template(tokenizer, base.chat_template, "model.base.chat_template", base.path)
    for key, attribute in (("pad_token", "pad_token"), ("end_token", "eos_token")):
        token = getattr(base, key)
        if token is not None:
            set_token(tokenizer, attribute, token, f"model.base.{key}", base.path)
    check_padding(tokenizer, "model.base.pad_token")
    try:
        turn = render_judged(tokenizer, [{"role": "user", "content": "question"}], "answer").text.rstrip()
    except TemplateRefusal as refusal:
        accepted = f"a template that renders a question and its answer; that of {base.path} says: {refusal}"
        raise InvalidValue("model.base.chat_template", base.chat_template, accepted) from refusal
    if not turn.endswith(tokenizer.eos_token):
        raise InvalidValue(
            "model.base.end_token",
            tokenizer.eos_token,
            f"the token that the chat template ends a turn with; it ends one with {turn.rpartition('answer')[2]!r}",
        )
    return tokenizer


def read_tokenizer(source: str, key: str, kind: str, **options: Any) -> Any:
    """The tokenizer of a model; ``options`` are those of ``from_pretrained``.

    Raises:
        InvalidValue: there is none; under the name ``key``, with ``kind`` as what is accepted.
    """
    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # of whatever type: the library names the reason in the text
        accepted = f"{kind} with a tokenizer, by directory or hub id ({one_line(error)})"
        raise InvalidValue(key, source, accepted) from error


def set_token(tokenizer: Any, attribute: str, token: str, key: str, owner: str) -> None:
    """Make ``token`` the ``pad_token`` or ``eos_token`` of ``tokenizer``, which is that of ``owner``.

    Raises:
        InvalidValue: its vocabulary lacks the token; under the name ``key``.
    """
    if token not in tokenizer.get_vocab():
        raise InvalidValue(key, token, f"a token in the vocabulary of {owner}")
    setattr(tokenizer, attribute, token)


def set_template(tokenizer: Any, file: str | None, key: str, owner: str) -> None:
    """Give ``tokenizer`` the chat template in ``file``, or see that it has one of its own.

    Raises:
        InvalidValue: neither, under the name ``key``.
    """
    if file:
        try:
            tokenizer.chat_template = Path(file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidValue(key, file, f"a file with a Jinja template ({error})") from error
    if not tokenizer.chat_template:
        raise InvalidValue(key, None, f"a file with a Jinja chat template, as {owner} has none")


def check_padding(tokenizer: Any, key: str) -> None:
    """See that padding is not the end token: a reward model, which reads its output at the end, would miss it.

    Raises:
        InvalidValue: it is, or there is no padding token; under the name ``key``.
    """
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        unused = [token for token in special if token not in (tokenizer.eos_token, tokenizer.bos_token)][:3]
        raise InvalidValue(
            key,
            tokenizer.pad_token,
            f"a padding token that is not the end token {tokenizer.eos_token!r} and that no text contains"
            + (f", such as {' or '.join(unused)}" if unused else ""),
        )
