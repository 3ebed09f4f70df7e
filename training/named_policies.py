"""Reads policies as the command line names them: a directory, an id on the hub, or a GGUF file."""

import sys
from pathlib import Path

from infalign.errors import InvalidValue, one_line
from infalign.files import hash_file
from infalign.home import home
from infalign.names import model_name

LONGEST = 8192
"""Tokens of prompt and response together, where the policy could take more and nobody says."""


def local_model(source: str, key: str) -> str:
    """Convert a GGUF file to a directory that is kept below ``$INFALIGN_HOME``.

    Args:
        source: A GGUF file; or a directory or hub id, which is returned as it is.
        key: Name of the setting that error messages blame.

    Raises:
        InvalidValue: The file cannot be converted.
    """
    file = Path(source)
    if file.suffix != ".gguf" or file.is_dir():
        return source
    if not file.is_file():
        raise InvalidValue(key, source, "a GGUF file that exists")
    target = home() / "models" / f"{model_name(source, 'policy')}-{hash_file(file)[:8]}"
    if not target.exists():
        import transformers

        from training.gguf import convert

        transformers.utils.logging.disable_progress_bar()
        print(f"{source}: converted once, into {target}", file=sys.stderr)
        target.parent.mkdir(parents=True, exist_ok=True)
        convert(file, target, key)
    return str(target)


def choose_padding(policy: str) -> dict[str, str]:
    """Choose a padding token for a policy whose tokenizer has none, or pads with the token that ends a turn.

    Args:
        policy: Directory of a causal LM, or its id on the hub.

    Returns:
        The key ``pad_token`` of ``model.base`` with a special token that has no other use; nothing if the tokenizer's
        own will do, or if there is no such token.
    """
    from training.tokenizer import read_tokenizer, unused_tokens

    tokenizer = read_tokenizer(policy, "--policy", "a causal LM")
    if tokenizer.pad_token not in (None, tokenizer.eos_token):
        return {}
    unused = unused_tokens(tokenizer)
    return {"pad_token": unused[0]} if unused else {}


def read_positions(policy: str) -> int:
    """Read how many tokens a policy can take.

    Args:
        policy: Directory of a causal LM, or its id on the hub.

    Returns:
        The number of tokens, at most :data:`LONGEST`.

    Raises:
        InvalidValue: There is no such model.
    """
    from transformers import AutoConfig

    from training.hub import MAIN, check_model, split_source

    check_model(policy, "--policy", "a causal LM")
    name, revision = split_source(policy)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, revision=revision or MAIN)
    except (OSError, ValueError) as error:
        raise InvalidValue("--policy", policy, f"a causal LM, by directory or hub id ({one_line(error)})") from error
    return int(min(LONGEST, getattr(config.get_text_config(), "max_position_embeddings", LONGEST)))
