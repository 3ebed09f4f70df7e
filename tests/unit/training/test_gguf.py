"""A GGUF file becomes a directory that says the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from infalign import InvalidValue
from infalign.templates import render_prompt, tokenise
from training.config import Base, Scratch
from training.gguf import convert
from training.models import new_model, read_causal
from training.tokenizer import END, PAD, base_tokenizer, train_tokenizer

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")
PROMPT = [{"role": "user", "content": "why and how, a b c"}]
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.0.input_layernorm": "blk.0.attn_norm",
    "model.layers.0.post_attention_layernorm": "blk.0.ffn_norm",
    "model.layers.0.self_attn.q_proj": "blk.0.attn_q",
    "model.layers.0.self_attn.k_proj": "blk.0.attn_k",
    "model.layers.0.self_attn.v_proj": "blk.0.attn_v",
    "model.layers.0.self_attn.o_proj": "blk.0.attn_output",
    "model.layers.0.mlp.gate_proj": "blk.0.ffn_gate",
    "model.layers.0.mlp.up_proj": "blk.0.ffn_up",
    "model.layers.0.mlp.down_proj": "blk.0.ffn_down",
}
"""Names of weights in a GGUF file."""


def pair_halves(weight: np.ndarray) -> np.ndarray:
    """Order the rows of a head as llama.cpp does: those that rotate together are neighbours."""
    rows, columns = weight.shape
    return weight.reshape(1, 2, rows // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return train_tokenizer(["why and how, a b c d e"], 300)


@pytest.fixture(scope="module")
def model(tokenizer: object) -> torch.nn.Module:
    torch.manual_seed(0)
    return new_model(tokenizer, Scratch(vocabulary=300, hidden=32, layers=1, positions=64)).eval()


@pytest.fixture(scope="module")
def file(tokenizer: object, model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    config, bpe = model.config, json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    control = {token.content for token in tokenizer.added_tokens_decoder.values()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(1)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in control else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    writer.add_bos_token_id(tokens.index("<|user|>"))
    writer.add_eos_token_id(tokens.index(END))
    writer.add_pad_token_id(tokens.index(PAD))
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in model.named_parameters():
        layer = name.removesuffix(".weight")
        values = weight.detach().numpy()
        writer.add_tensor(
            f"{NAMES[layer]}.weight", pair_halves(values) if layer.endswith(("q_proj", "k_proj")) else values
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_model_and_its_tokenizer_are_the_same(
    file: Path, tokenizer: object, model: torch.nn.Module, tmp_path: Path
) -> None:
    convert(file, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    read = read_causal(tmp_path / "model").eval()
    read_tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenise(tokenizer, render_prompt(tokenizer, PROMPT))
    assert tokenise(read_tokenizer, render_prompt(read_tokenizer, PROMPT)) == ids
    with torch.no_grad():
        ours, theirs = (each(input_ids=torch.tensor([ids])).logits for each in (model, read))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not hasattr(read.config, "quantization_config")


def test_the_special_tokens_are_those_of_the_metadata(file: Path, tmp_path: Path) -> None:
    convert(file, tmp_path / "model")
    read = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert (read.bos_token, read.eos_token, read.pad_token) == ("<|user|>", END, PAD)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (read.eos_token_id, read.pad_token_id)
    base_tokenizer(Base(path=str(tmp_path / "model"), positions=64))  # refuses a model whose answers never end


def test_a_directory_that_exists_is_replaced(file: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "old").touch()
    convert(file, tmp_path / "model")
    assert not (tmp_path / "model" / "old").exists()


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="--policy: got"):
        convert(tmp_path / "missing.gguf", tmp_path / "model", "--policy")
    for content in (b"", b"PK\x03\x04", b"GGUF", b"GGUF" + bytes(100)):
        (tmp_path / "bad.gguf").write_bytes(content)
        with pytest.raises(InvalidValue, match=r"--policy: got .*GGUF file"):
            convert(tmp_path / "bad.gguf", tmp_path / "model", "--policy")
    assert not (tmp_path / "model").exists()
