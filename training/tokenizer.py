"""Makes and checks tokenizers.

A model from scratch gets a byte-level BPE with a chat template. A base model keeps its own tokenizer, after checks that
a response ends and that padding is harmless.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerFast

from infalign.errors import InvalidValue, TemplateRefusal, one_line
from infalign.templates import render_conversation
from training.config import Base
from training.hub import check_model, split_source

PAD, END = "<|pad|>", "<|end|>"
"""Padding token and end token."""
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>")
"""Tokens that begin a message."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""Chat template of models from scratch."""


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE.

    Args:
        texts: Texts to train on.
        vocabulary: Largest number of tokens, with all bytes and special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, *ROLE_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE, padding_side="left"
    )


def base_tokenizer(base: Base) -> Any:
    """Load the tokenizer of a base model and apply what the config changes.

    Args:
        base: Config of the base model.

    Raises:
        InvalidValue: There is no tokenizer, its chat template is missing or fails, it pads with the token that ends a
            turn, or its template ends a turn with another token, so that no response would ever end.
    """
    tokenizer = read_tokenizer(base.path, "model.base.path", "a causal LM", padding_side="left")
    set_template(tokenizer, base.chat_template, "model.base.chat_template", base.path)
    for key, attribute in (("pad_token", "pad_token"), ("end_token", "eos_token")):
        token = getattr(base, key)
        if token is not None:
            set_token(tokenizer, attribute, token, f"model.base.{key}", base.path)
    check_padding(tokenizer, "model.base.pad_token")
    try:
        turn = render_conversation(tokenizer, [{"role": "user", "content": "question"}], "answer").text.rstrip()
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
    """Load a tokenizer.

    Args:
        source: Directory of the model, or its id on the hub.
        key: Name of the setting that the error message blames.
        kind: What is accepted, for the error message.
        options: Options of ``from_pretrained``.

    Raises:
        InvalidValue: There is no tokenizer.
    """
    check_model(source, key, kind)
    name, revision = split_source(source)
    options |= {"revision": revision} if revision else {}
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # of whatever type: the library names the reason in the text
        accepted = f"{kind} with a tokenizer, by directory or hub id ({one_line(error)})"
        raise InvalidValue(key, source, accepted) from error


def set_token(tokenizer: Any, attribute: str, token: str, key: str, owner: str) -> None:
    """Change the padding token or the end token of a tokenizer.

    Args:
        tokenizer: The tokenizer, which is changed.
        attribute: ``pad_token`` or ``eos_token``.
        token: The new token.
        key: Name of the setting that the error message blames.
        owner: Model of the tokenizer, for the error message.

    Raises:
        InvalidValue: The token is not in the vocabulary.
    """
    if token not in tokenizer.get_vocab():
        raise InvalidValue(key, token, f"a token in the vocabulary of {owner}")
    setattr(tokenizer, attribute, token)


def set_template(tokenizer: Any, file: str | None, key: str, owner: str) -> None:
    """Give a tokenizer a chat template, or check that it has one.

    Args:
        tokenizer: The tokenizer, which is changed.
        file: File with a Jinja template, or None to keep its own.
        key: Name of the setting that the error message blames.
        owner: Model of the tokenizer, for the error message.

    Raises:
        InvalidValue: The file cannot be read, or there is no template.
    """
    if file:
        try:
            tokenizer.chat_template = Path(file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidValue(key, file, f"a file with a Jinja template ({error})") from error
    if not tokenizer.chat_template:
        raise InvalidValue(key, None, f"a file with a Jinja chat template, as {owner} has none")


def check_padding(tokenizer: Any, key: str) -> None:
    """Check that a tokenizer has a padding token that is not its end token.

    A reward model is read at the end of a text. It would miss an end token that counts as padding.

    Args:
        tokenizer: The tokenizer.
        key: Name of the setting that the error message blames.

    Raises:
        InvalidValue: There is no padding token, or it is the end token.
    """
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        unused = unused_tokens(tokenizer)[:3]
        raise InvalidValue(
            key,
            tokenizer.pad_token,
            f"a padding token that is not the end token {tokenizer.eos_token!r} and that no text contains"
            + (f", such as {' or '.join(unused)}" if unused else ""),
        )


def unused_tokens(tokenizer: Any) -> list[str]:
    """List special tokens that neither begin nor end a text. One of them can pad."""
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [token for token in special if token not in (tokenizer.eos_token, tokenizer.bos_token)]
