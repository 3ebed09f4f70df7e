"""Puts adapters that exist into a bundle that serves their base model."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from transformers import AutoTokenizer

from infalign.bundle import Bundle, read_bundle
from infalign.bundling import NewPolicy, rewrite_bundle
from training.models import put_adapter, read_causal, save_model


def add_adapters(path: Path, adapters: Mapping[str, Path]) -> Bundle:
    """Replace the policies of a bundle by adapters on its reference, which were not aligned here.

    Args:
        path: Directory of the bundle.
        adapters: Directory of each adapter by its name. The first is the default.

    Returns:
        The bundle.

    Raises:
        InvalidValue: An adapter was made for another model.
    """
    bundle = read_bundle(path)
    tokenizer = AutoTokenizer.from_pretrained(bundle.reference, trust_remote_code=False)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        for name, directory in adapters.items():
            model = put_adapter(directory, read_causal(bundle.reference))
            save_model(model, tokenizer, Path(folder, name))
        policies = {name: NewPolicy(Path(folder, name), adapter=True) for name in adapters}
        return rewrite_bundle(bundle, policies=policies, name=next(iter(adapters)))
