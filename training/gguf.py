"""Converts a model in a GGUF file, the format of llama.cpp, to a directory that transformers and vLLM load.

Weights are written as float32, whatever they were quantised to. Transformers reads GGUF with the help of the package
``gguf``, but what it gives back cannot be saved as it is:

- The model counts as quantised, and refuses to be saved.
- The tokenizer has wrong special tokens. The token that ends a turn is the one that begins it, and none pads. The
  metadata of the file says which tokens are meant.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from infalign.errors import InvalidValue, one_line

SUFFIX = ".gguf"
"""End of the name of a GGUF file."""
MAGIC = b"GGUF"
"""First bytes of a GGUF file."""
SPECIAL_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
}
"""Keys of the metadata that hold the ids of special tokens, by the attribute of the tokenizer."""
TOKENS = "tokenizer.ggml.tokens"
"""Key of the metadata that holds the vocabulary."""

MARKS = ("quantization_config", "_model_name_or_path")
"""Keys of the config that say where the weights come from, and that they are quantised."""


def convert(file: Path, directory: Path, key: str = "model") -> None:
    """Convert a GGUF file to a directory with weights, config, tokenizer and chat template.

    The directory appears when it is complete. If it exists, it is replaced.

    Args:
        file: The GGUF file. It holds a causal LM.
        directory: Directory that is written.
        key: Name of the setting that error messages blame.

    Raises:
        InvalidValue: There is no such file, it is no GGUF file, its architecture is not known, or the package ``gguf``
            is not installed.
    """
    if not file.is_file():
        raise InvalidValue(key, str(file), "a GGUF file")
    with file.open("rb") as stream:
        if stream.read(len(MAGIC)) != MAGIC:
            raise InvalidValue(key, str(file), f"a GGUF file, which begins with {MAGIC.decode()}")
    if find_spec("gguf") is None:
        raise InvalidValue(key, str(file), "the package that reads GGUF files: pip install gguf")
    location = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        special_tokens = read_special_tokens(file)
        tokenizer = AutoTokenizer.from_pretrained(
            **location, clean_up_tokenization_spaces=False, trust_remote_code=False
        )
        quantised = AutoModelForCausalLM.from_pretrained(**location, dtype=torch.float32, trust_remote_code=False)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # of whatever type: the libraries name the reason in the text
        raise InvalidValue(key, str(file), f"a GGUF file of a causal LM ({one_line(error)})") from error
    for attribute, token in special_tokens.items():
        setattr(tokenizer, attribute, token)
    work = directory.with_name(f".{directory.name}")
    shutil.rmtree(work, ignore_errors=True)
    _plain_copy(quantised, tokenizer).save_pretrained(work)
    tokenizer.save_pretrained(work)
    shutil.rmtree(directory, ignore_errors=True)
    work.rename(directory)


def read_special_tokens(file: Path) -> dict[str, str]:
    """Read the special tokens from the metadata of a GGUF file.

    Args:
        file: The GGUF file.

    Returns:
        Texts of the tokens by the attribute of the tokenizer, such as ``eos_token``. Tokens that the file does not name
        are left out.
    """
    from gguf import GGUFReader

    fields = GGUFReader(file).fields
    vocabulary = fields[TOKENS].contents() if TOKENS in fields else []
    return {
        attribute: vocabulary[int(fields[name].contents())]
        for attribute, name in SPECIAL_TOKENS.items()
        if name in fields and int(fields[name].contents()) < len(vocabulary)
    }


def _plain_copy(model: Any, tokenizer: Any) -> Any:
    """Make the same model without the marks of quantisation. It ends and pads sequences as the tokenizer does."""
    values = model.config.to_dict()
    config = type(model.config).from_dict({name: values[name] for name in values if name not in MARKS})
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        setattr(config, name, getattr(tokenizer, name))
    copy = type(model)(config)
    copy.load_state_dict(model.state_dict())
    return copy
