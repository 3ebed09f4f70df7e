"""Models: none is loaded wrongly, and a text has one reward, alone, in a batch, in training and in the server."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
)

from infalign.errors import InvalidValue
from training.adoption import adopt_classifier
from training.config import Base, Classifier
from training.judges import load_judge
from training.models import base_model, load_causal, load_classifier, new_classifier, put_adapter
from training.scorer import Scorer
from training.tokenizer import CHAT_TEMPLATE, END, PAD, train_tokenizer

PROMPT = [{"role": "user", "content": "why?"}]
RESPONSES = ("a", "", "b c d e", "a long one " * 4, f"a {PAD}", PAD, f"a{END}", END)
SHAPE = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "max_position_embeddings": 96,
    "initializer_range": 0.5,
    "bos_token_id": None,
}


GPT2_SHAPE = {"vocab_size": 300, "n_embd": 16, "n_layer": 1, "n_head": 1, "n_positions": 32}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0] * 16,
    "long_factor": [2.0] * 16,
}
BLOOM_SHAPE = {"vocab_size": 300, "hidden_size": 16, "n_layer": 1, "n_head": 1}
POSITIONS = "bert.embeddings.position_embeddings.weight"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["why and how, a b c d e"], 300)


@pytest.fixture(scope="module")
def sound(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound models, a directory each."""
    root = tmp_path_factory.mktemp("sound")
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)

    def config(**changes: Any) -> LlamaConfig:
        return LlamaConfig(**SHAPE | ends | {"tie_word_embeddings": True} | changes)

    models = {
        "causal": LlamaForCausalLM(config()),
        "untied": LlamaForCausalLM(config(tie_word_embeddings=False)),
        "bare": LlamaModel(config(tie_word_embeddings=False)),
        "classifier": LlamaForSequenceClassification(config(num_labels=1)),
        "two": LlamaForSequenceClassification(config(num_labels=2, id2label={0: "dull", 1: "kind"})),
        "encoder": BertForSequenceClassification(
            BertConfig(
                vocab_size=300,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=1,
                intermediate_size=48,
                num_labels=1,
                initializer_range=0.5,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    for name, base in (("adapter", "causal"), ("classifier-adapter", "classifier")):
        task = {"adapter": "CAUSAL_LM", "classifier-adapter": "SEQ_CLS"}[name]
        lora = LoraConfig(r=2, target_modules="all-linear", task_type=task, init_lora_weights=False)
        get_peft_model(models[base], lora).save_pretrained(str(root / name), save_embedding_layers=False)
        file = root / name / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(root / base)}))
    return root


Edit = Callable[[Path], None]


def weights(change: Callable[[dict[str, torch.Tensor]], Any], file: str = "model.safetensors") -> Edit:
    """An edit of a checkpoint's weights."""

    def edit(directory: Path) -> None:
        tensors = load_file(directory / file)
        change(tensors)
        save_file(tensors, directory / file, metadata={"format": "pt"})

    return edit


def config(**changes: Any) -> Edit:
    """An edit of a model's config."""

    def edit(directory: Path) -> None:
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return edit


def half_written(name: str = "model.safetensors") -> Edit:
    def edit(directory: Path) -> None:
        file = directory / name
        file.write_bytes(file.read_bytes()[:4000])

    return edit


def no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def rename(old: str, new: str) -> Edit:
    return weights(lambda tensors: tensors.update({new: tensors.pop(old)}))


def nothing(directory: Path) -> None:
    """A model as it is."""


NO_HEAD = "the checkpoint has no classification head: it is a causal LM, or its head has another name"
UNSOUND_CLASSIFIERS: dict[str, tuple[str, Edit, str]] = {
    "a causal LM": ("causal", config(num_labels=1), rf"missing: score\.weight \({NO_HEAD}"),
    "a causal LM with a head of its own": (
        "untied",
        config(num_labels=1),
        r"missing: score\.weight; not in the model: lm_head\.weight",
    ),
    "a head of another name": (
        "classifier",
        rename("score.weight", "v_head.weight"),
        rf"missing: score\.weight; not in the model: v_head\.weight \({NO_HEAD}",
    ),
    "a layer that is missing": (
        "classifier",
        weights(lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1" in name]),
        r"missing: model\.layers\.1\.input_layernorm\.weight, .* and 6 more \(its config\.json describes another model",
    ),
    "a layer too many": (
        "classifier",
        config(num_hidden_layers=1),
        r"not in the model: model\.layers\.1\..* and 6 more",
    ),
    "another width": (
        "classifier",
        config(intermediate_size=64),
        r"other shapes: .*down_proj\.weight of shape \(32, 48\) where the model's is \(32, 64\)",
    ),
    "a head of one output where the config says two": (
        "classifier",
        config(id2label={"0": "a", "1": "b"}),
        r"score\.weight of shape \(1, 32\) where the model's is \(2, 32\)",
    ),
    "a half written file": ("classifier", half_written(), "a sequence classifier, by directory or hub id"),
    "no weights at all": ("classifier", no_weights, "a sequence classifier, by directory or hub id"),
    "a config of no known model": ("classifier", config(model_type="none"), "a sequence classifier, by directory"),
    "a config of the wrong type": ("classifier", config(hidden_size="wide"), "a sequence classifier, by directory"),
    "an encoder without its head": (
        "encoder",
        weights(lambda tensors: tensors.pop("classifier.weight")),
        rf"missing: classifier\.weight \({NO_HEAD}",
    ),
}


def copied(source: Path, target: Path, edit: Edit = nothing) -> Path:
    shutil.copytree(source, target)
    edit(target)
    return target


def adopt(path: Path, target: Path, **options: Any) -> Path:
    adopt_classifier(target, Classifier(path=str(path), name="known", higher_is="better", **options))
    return target


def judged(path: Path, target: Path) -> Any:
    return load_judge(str(path))


@pytest.mark.parametrize(
    ("load", "key"), [(adopt, r"reward\.classifiers\[known\]\.path"), (judged, "judge")], ids=["adopted", "judge"]
)
@pytest.mark.parametrize(("model", "edit", "message"), UNSOUND_CLASSIFIERS.values(), ids=UNSOUND_CLASSIFIERS)
def test_a_classifier_whose_checkpoint_does_not_fit_is_refused_by_name(
    sound: Path, tmp_path: Path, load: Any, key: str, model: str, edit: Edit, message: str
) -> None:
    broken = copied(sound / model, tmp_path / "broken", edit)
    with pytest.raises(InvalidValue, match=rf"(?s)^{key}: got '{broken}', .*{message}") as refused:
        load(broken, tmp_path / "adopted")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "adopted").exists()


UNSOUND_BASES: dict[str, tuple[str, Edit, str]] = {
    "a classifier": (
        "classifier",
        config(tie_word_embeddings=False),
        r"missing: lm_head\.weight; not in .*score\.weight",
    ),
    "a bare model": ("bare", nothing, r"missing: lm_head\.weight \(the checkpoint has no language model head"),
    "a layer too few": ("causal", config(num_hidden_layers=3), r"missing: model\.layers\.2\..* and 6 more"),
    "a value head": (
        "causal",
        weights(lambda tensors: tensors.update({"v_head.weight": torch.zeros(1, 32)})),
        r"not in the model: v_head\.weight",
    ),
    "another vocabulary": ("causal", config(vocab_size=301), r"embed_tokens\.weight of shape \(300, 32\) where"),
    "an adapter": ("adapter", nothing, "a causal LM; this is an adapter: merge it into its model, and give that"),
    "half written": ("causal", half_written(), "a causal LM, by directory or hub id"),
}


@pytest.mark.parametrize(("model", "edit", "message"), UNSOUND_BASES.values(), ids=UNSOUND_BASES)
def test_a_base_whose_checkpoint_does_not_fit_is_refused_by_name(
    sound: Path, tokenizer: Any, tmp_path: Path, model: str, edit: Edit, message: str
) -> None:
    broken = copied(sound / model, tmp_path / "broken", edit)
    with pytest.raises(InvalidValue, match=rf"(?s)^model\.base\.path: got '{broken}', .*{message}"):
        base_model(tokenizer, Base(path=str(broken), positions=64))


def test_an_adapter_of_a_classifier_is_refused_by_name(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"known\]\.path: got .* this is an adapter: merge it"):
        adopt(sound / "classifier-adapter", tmp_path / "adopted")


@pytest.mark.parametrize("model", ["causal", "untied"])
def test_sound_models_are_loaded_and_only_a_new_head_is_new(sound: Path, tokenizer: Any, model: str) -> None:
    ours = base_model(tokenizer, Base(path=str(sound / model), positions=64)).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(sound / model).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    headed = new_classifier(sound / model)
    assert headed.config.num_labels == 1
    assert torch.equal(headed.model.embed_tokens.weight, theirs["model.embed_tokens.weight"])


def test_a_new_head_is_put_on_no_half_model(sound: Path, tmp_path: Path) -> None:
    lacks_a_layer = copied(sound / "untied", tmp_path / "short", config(num_hidden_layers=3))
    with pytest.raises(InvalidValue, match=r"^model: got .* missing: model\.layers\.2\.input_layernorm\.weight, "):
        new_classifier(lacks_a_layer)


LORA_B = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
UNSOUND_ADAPTERS: dict[str, tuple[Edit, str]] = {
    "a weight is missing": (weights(lambda t: t.pop(LORA_B), "adapter_model.safetensors"), rf"missing: {LORA_B} "),
    "a weight too many": (
        weights(lambda t: t.update({"base_model.model.score.weight": torch.zeros(1, 32)}), "adapter_model.safetensors"),
        r"not in the model: base_model\.model\.score\.weight",
    ),
    "another width": (
        weights(lambda t: t.update({LORA_B: torch.zeros(64, 2)}), "adapter_model.safetensors"),
        "size mismatch",
    ),
    "half written": (
        lambda at: (at / "adapter_model.safetensors").write_bytes(b"short") and None,
        "an adapter that was",
    ),
}


@pytest.mark.parametrize(("edit", "message"), UNSOUND_ADAPTERS.values(), ids=UNSOUND_ADAPTERS)
def test_an_adapter_that_does_not_fit_is_refused_by_name(sound: Path, tmp_path: Path, edit: Edit, message: str) -> None:
    put_adapter(sound / "adapter", load_causal(sound / "causal"))
    broken = copied(sound / "adapter", tmp_path / "broken", edit)
    with pytest.raises(InvalidValue, match=rf"(?s)^adapter: got '{broken}', .*{message}"):
        put_adapter(broken, load_causal(sound / "causal"))


def alone(directory: Path, response: str) -> float:
    """The reward as the library gives it to one text, read to its last token, as vLLM does."""
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    model.config.pad_token_id = None
    tokens = Scorer(model, AutoTokenizer.from_pretrained(directory)).encode(PROMPT, response)
    with torch.inference_mode():
        return float(model(input_ids=torch.tensor([tokens])).logits[0, 0])


def check_rewards(adopted: Path) -> None:
    scorer = Scorer.load(adopted)
    expected = [alone(adopted, response) for response in RESPONSES]
    assert np.std(expected) > 0.01
    one_by_one = [float(scorer.score([PROMPT], [response])[0]) for response in RESPONSES]
    assert one_by_one == pytest.approx(expected, abs=1e-5)
    together = scorer.score([PROMPT] * len(RESPONSES), RESPONSES)
    assert together == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("model", "edit"),
    [
        ("classifier", nothing),
        ("classifier", config(pad_token_id=None)),
        ("classifier", config(pad_token_id=7)),
        ("classifier", config(pad_token_id=299)),
        ("encoder", nothing),
        ("encoder", config(pad_token_id=7)),
    ],
    ids=["sound", "none", "another", "the last", "encoder", "encoder, another"],
)
def test_a_text_has_one_reward_whatever_the_config_pads_with(
    sound: Path, tokenizer: Any, tmp_path: Path, model: str, edit: Edit
) -> None:
    adopted = adopt(copied(sound / model, tmp_path / "given", edit), tmp_path / "adopted")
    assert AutoConfig.from_pretrained(adopted).pad_token_id == tokenizer.pad_token_id
    check_rewards(adopted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_classifier_in_half_precision_is_adopted_as_it_is(sound: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    given = copied(sound / "classifier", tmp_path / "given")
    AutoModelForSequenceClassification.from_pretrained(given, dtype=dtype).save_pretrained(given)
    adopted = adopt(given, tmp_path / "adopted")
    assert AutoConfig.from_pretrained(adopted).dtype == dtype
    rewards = Scorer.load(adopted).score([PROMPT] * len(RESPONSES), RESPONSES)
    assert rewards == pytest.approx([alone(adopted, response) for response in RESPONSES], rel=0.03)


def pads_with_end(directory: Path) -> None:
    """The config and the tokenizer pad with the token that ends a turn."""
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(directory)
    config(pad_token_id=tokenizer.eos_token_id)(directory)


def test_an_answer_that_is_too_long_for_a_classifier_is_cut_and_the_prompt_is_not(sound: Path, tmp_path: Path) -> None:
    """An encoder cannot read more than the positions that it has learned."""
    path = Path(shutil.copytree(sound / "encoder", tmp_path / "encoder"))
    weights(lambda tensors: tensors.update({POSITIONS: tensors[POSITIONS][:40].clone()}))(path)
    config(max_position_embeddings=40)(path)
    scorer, prompt = Scorer.load(path), [{"role": "user", "content": "why"}]
    tokens, short = scorer.encode(prompt, "so " * 100), scorer.encode(prompt, "so")
    assert (len(tokens), len(short) < 40) == (40, True)
    assert (tokens[:5], tokens[-1]) == (short[:5], short[-1])
    assert np.isfinite(scorer.score([prompt], ["so " * 100])).all()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            GPT2LMHeadModel(GPT2Config(**GPT2_SHAPE)),
            "model.base.positions: got 16, accepted: 32, ",
        ),
        (
            LlamaForCausalLM(LlamaConfig(**SHAPE, rope_parameters=LONGROPE)),
            "base.positions: got 16, accepted: 96, .*longrope",
        ),
        (BloomForCausalLM(BloomConfig(**BLOOM_SHAPE)), "model.base.path: .* says how many tokens it reads"),
    ],
    ids=["learned positions", "longrope", "no positions"],
)
def test_a_base_whose_context_cannot_be_cut_is_refused(
    tokenizer: Any, tmp_path: Path, model: Any, message: str
) -> None:
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    with pytest.raises(InvalidValue, match=message):
        base_model(tokenizer, Base(path=str(tmp_path / "base"), positions=16))
    if isinstance(model, GPT2LMHeadModel):
        whole = base_model(tokenizer, Base(path=str(tmp_path / "base"), positions=32))
        assert whole.config.eos_token_id == tokenizer.eos_token_id


def test_a_tokenizer_that_pads_with_the_end_token_does_no_harm_by_itself(sound: Path, tmp_path: Path) -> None:
    given = copied(sound / "classifier", tmp_path / "given", pads_with_end)
    config(pad_token_id=None)(given)
    adopted = adopt(given, tmp_path / "adopted")
    check_rewards(adopted)
    assert AutoConfig.from_pretrained(adopted).pad_token_id is None


def test_a_config_that_pads_with_the_end_token_is_refused_and_both_ways_out_work(sound: Path, tmp_path: Path) -> None:
    given = copied(sound / "classifier", tmp_path / "given", pads_with_end)
    message = r"alone -?\d.*, beside longer texts -?\d.*pads with '<\|end\|>'.* give pad_token, .* chat_template"
    with pytest.raises(InvalidValue, match=message):
        adopt(given, tmp_path / "refused")
    with pytest.raises(InvalidValue, match=r"known\]\.pad_token: got '<none>', accepted: a token in the vocabulary"):
        adopt(given, tmp_path / "refused", pad_token="<none>")
    with pytest.raises(InvalidValue, match=r"pads with '<\|end\|>'"):
        adopt(given, tmp_path / "refused", pad_token=END)
    adopted = adopt(given, tmp_path / "at-the-end", pad_token=PAD)
    assert AutoTokenizer.from_pretrained(adopted).pad_token == PAD
    check_rewards(adopted)
    template = tmp_path / "template.jinja"
    template.write_text(CHAT_TEMPLATE.replace("<|end|>", " "))
    check_rewards(adopt(given, tmp_path / "before-it", chat_template=str(template)))


def test_a_judge_that_pads_with_the_end_token_is_refused(sound: Path, tmp_path: Path) -> None:
    given = copied(sound / "classifier", tmp_path / "given", pads_with_end)
    with pytest.raises(InvalidValue, match=r"^judge: got .* Set pad_token_id in its config\.json"):
        load_judge(str(given))


def test_a_judge_with_two_outputs_is_asked_for_the_one_that_is_named(sound: Path) -> None:
    two = str(sound / "two")
    with pytest.raises(InvalidValue, match=r"^judge: .* --judge-output for one of its 2: 0 \(dull\), 1 \(kind\)"):
        load_judge(two)
    scores = [load_judge(two, output)([PROMPT] * 2, ["a", "b c"]) for output in (0, 1)]
    scorer = Scorer(load_classifier(sound / "two"), AutoTokenizer.from_pretrained(sound / "two"))
    assert scores[0] == pytest.approx(scorer.score([PROMPT] * 2, ["a", "b c"]))
    assert scores[1] != pytest.approx(scores[0])
    with pytest.raises(InvalidValue, match=r"^--judge-output: got 2, accepted: at most 1"):
        load_judge(two, 2)
    with pytest.raises(InvalidValue, match=r"^--judge-output: got 0, accepted: nothing where the judge is helpdesk"):
        load_judge("helpdesk", 0)


def test_a_reward_model_with_two_outputs_is_refused_until_one_is_named(sound: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"known\]\.label: got None, accepted: which .*: 0 \(dull\), 1 \(kind\)"):
        adopt(sound / "two", tmp_path / "adopted")


def test_a_judge_without_a_chat_template_is_refused(sound: Path, tmp_path: Path) -> None:
    given = copied(sound / "classifier", tmp_path / "given")
    (given / "chat_template.jinja").unlink()
    with pytest.raises(InvalidValue, match=r"^judge: got .* a classifier whose tokenizer has a chat template"):
        load_judge(str(given))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """As the command line does: the library reports loading faults in its log alone, which is turned off."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)
