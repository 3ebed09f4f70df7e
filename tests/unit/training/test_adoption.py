"""Rewards that exist, adopted by a run: classifiers of every architecture, judges, functions and services."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infalign import InvalidValue
from infalign.rewards import FunctionReward, RewardFailed, read_reward
from infalign.templates import render_conversation, render_prompt, tokenise
from tests.tiny import tiny_job
from training.adoption import adopt_classifier, adopt_external, adopt_judge, adopt_reference_judge
from training.config import Classifier, Function, Judge, ReferenceJudge, Service
from training.models import read_causal
from training.scorer import Scorer, load_scorer

PROMPTS = [[{"role": "user", "content": "why"}], [{"role": "user", "content": "how"}]]
RESPONSES = ["a b", "c d e"]
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
DECODER = {"num_key_value_heads": 1, "head_dim": 16}
ARCHITECTURES = {
    "Llama": DECODER,
    "Qwen2": DECODER,
    "Qwen3": DECODER,
    "Gemma": DECODER,
    "Mistral": DECODER,
    "Bert": {},
    "ModernBert": {"cls_token_id": 1, "sep_token_id": 1, "bos_token_id": 1, "eos_token_id": 1},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_job(tmp_path_factory.mktemp("models"), samples=1, max_tokens=1).reference.parent


def make_classifier(models: Path, target: Path, architecture: str, **settings: Any) -> Path:
    """A classifier of random weights with the tokenizer of the tiny models."""
    torch.manual_seed(1)
    make_config = getattr(transformers, f"{architecture}Config")
    config = make_config(**SIZES, **ARCHITECTURES[architecture], **settings)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(target)
    AutoTokenizer.from_pretrained(models / "reference").save_pretrained(target)
    return target


def outputs(directory: Path) -> np.ndarray[Any, Any]:
    """All outputs of a classifier for the responses, each alone."""
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    rows = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        tokens = torch.tensor([tokenise(tokenizer, render_conversation(tokenizer, prompt, response))])
        with torch.inference_mode():
            rows.append(model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0].tolist())
    return np.array(rows)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_of_two_labels_the_difference_is_the_reward(models: Path, tmp_path: Path, architecture: str) -> None:
    labels = {"id2label": {0: "fine", 1: "harmful"}, "label2id": {"fine": 0, "harmful": 1}}
    source = make_classifier(models, tmp_path / "source", architecture, num_labels=2, **labels)
    adopt_classifier(tmp_path / "adopted", Classifier(path=str(source), label="harmful", higher_is="worse"))
    rewards = load_scorer(tmp_path / "adopted").score(PROMPTS, RESPONSES)
    fine, harmful = outputs(source).T
    assert rewards == pytest.approx(fine - harmful, abs=1e-5)
    assert Scorer.load(tmp_path / "adopted").model.config.id2label == {0: "harmful"}


@pytest.mark.parametrize(("label", "output"), [(2, 2), ("2", 2), ("LABEL_0", 0)])
def test_of_more_labels_the_logit_of_one_is_the_reward(models: Path, tmp_path: Path, label: Any, output: int) -> None:
    source = make_classifier(models, tmp_path / "source", "Bert", num_labels=3)
    adopt_classifier(tmp_path / "adopted", Classifier(path=str(source), label=label, higher_is="better"))
    assert load_scorer(tmp_path / "adopted").score(PROMPTS, RESPONSES) == pytest.approx(
        outputs(source)[:, output], abs=1e-5
    )


def test_two_labels_that_do_not_exclude_each_other_are_taken_alone(models: Path, tmp_path: Path) -> None:
    kind = {"num_labels": 2, "problem_type": "multi_label_classification"}
    source = make_classifier(models, tmp_path / "source", "Bert", **kind)
    adopt_classifier(tmp_path / "adopted", Classifier(path=str(source), label=0, higher_is="better"))
    assert load_scorer(tmp_path / "adopted").score(PROMPTS, RESPONSES) == pytest.approx(outputs(source)[:, 0], abs=1e-5)


@pytest.mark.parametrize("label", [None, "harmless", 2, -1])
def test_an_output_that_nobody_chose_or_that_is_missing_is_refused(models: Path, tmp_path: Path, label: Any) -> None:
    source = make_classifier(models, tmp_path / "source", "Llama", num_labels=2)
    accepted = r"label: got .*, accepted: which of the classifier's outputs counts: 0 \(LABEL_0\), 1 \(LABEL_1\)"
    with pytest.raises(InvalidValue, match=accepted):
        adopt_classifier(tmp_path / "adopted", Classifier(path=str(source), label=label, higher_is="better"))


def test_a_classifier_without_a_template_reads_a_text(models: Path, tmp_path: Path) -> None:
    source = make_classifier(models, tmp_path / "source", "Bert", num_labels=1)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(source)
    (source / "chat_template.jinja").unlink()
    config = {"path": str(source), "higher_is": "better"}
    with pytest.raises(InvalidValue, match=r"as .* has none"):
        adopt_classifier(tmp_path / "refused", Classifier(**config))
    text = 'ask "{prompt}"\nanswer {response}'
    adopt_classifier(tmp_path / "adopted", Classifier(**config, text=text))
    adopted = AutoTokenizer.from_pretrained(tmp_path / "adopted")
    assert render_conversation(adopted, PROMPTS[0], "b {prompt}").text == 'ask "why"\nanswer b {prompt}'
    with pytest.raises(ValueError, match="give text or chat_template"):
        Classifier(**config, text=text, chat_template="file")
    with pytest.raises(ValueError, match=r"with \{response\} once"):
        Classifier(**config, text="no place")


def test_a_judge_is_its_language_model(models: Path, tmp_path: Path) -> None:
    config = Judge(path=str(models / "reference"), rubric="{conversation}: a {response}", scores={"a": 1.0, "b": 4.0})
    adopt_judge(tmp_path / "judge", config)
    scorer = Scorer.load(tmp_path / "judge")
    assert scorer.values == (1.0, 4.0)
    causal = read_causal(models / "reference").eval()
    tokenizer = AutoTokenizer.from_pretrained(models / "reference")
    expected = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        rubric = [{"role": "user", "content": f"user: {prompt[0]['content']}: a {response}"}]
        tokens = tokenise(tokenizer, render_prompt(tokenizer, rubric))
        assert list(scorer.encode(prompt, response)) == tokens
        with torch.inference_mode():
            logits = causal(input_ids=torch.tensor([tokens])).logits[0, -1]
        a, b = (logits[tokenizer(score, add_special_tokens=False)["input_ids"][0]] for score in "ab")
        expected.append(float(torch.sigmoid(a - b) + 4 * torch.sigmoid(b - a)))
    assert scorer.score(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-5)
    adopt_judge(tmp_path / "worse", Judge(**config.model_dump() | {"higher_is": "worse"}))
    assert load_scorer(tmp_path / "worse").score(PROMPTS, RESPONSES) == pytest.approx(
        [-score for score in expected], abs=1e-5
    )


def test_a_score_of_several_tokens_is_refused(models: Path, tmp_path: Path) -> None:
    config = Judge(path=str(models / "reference"), scores={"yes": 1.0, "b": 0.0})
    with pytest.raises(InvalidValue, match=r"scores: got 'yes', accepted: texts that are one token"):
        adopt_judge(tmp_path / "judge", config)


JUDGING = {"rubric": "{conversation}: a {response}", "scores": {"a": 1.0, "b": 4.0}}


@pytest.mark.parametrize("sign", ["better", "worse"])
def test_the_reference_judges_as_the_same_model_elsewhere_does(models: Path, tmp_path: Path, sign: str) -> None:
    adopt_judge(tmp_path / "judge", Judge(path=str(models / "reference"), higher_is=sign, **JUDGING))
    adopt_reference_judge(tmp_path / "own", ReferenceJudge(higher_is=sign, **JUDGING), models / "reference")
    assert [file.name for file in (tmp_path / "own").iterdir()] == ["reward.json"], "no weights"
    scorer = load_scorer(tmp_path / "own", "own", models / "reference")
    prompts, responses = [*PROMPTS, *PROMPTS], [*RESPONSES, *RESPONSES[::-1]]
    expected = load_scorer(tmp_path / "judge").score(prompts, responses)
    assert scorer.score(prompts, responses) == pytest.approx(expected, abs=1e-5)


def test_of_a_response_that_does_not_fit_the_end_is_not_judged(models: Path, tmp_path: Path) -> None:
    adopt_reference_judge(tmp_path / "own", ReferenceJudge(**JUDGING), models / "reference")
    scorer = load_scorer(tmp_path / "own", "own", models / "reference")
    short, long = scorer.score([PROMPTS[0]] * 2, ["a b c " * 40 + "d", "a b c " * 40 + "e"])
    assert short == long
    with pytest.raises(RewardFailed, match=r"the reward own: with its rubric .* \d+ tokens, .* at most 63"):
        scorer.score([[{"role": "user", "content": "why " * 80}]], ["a"])


def test_a_rubric_that_the_reference_cannot_judge_by_is_refused(models: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"reward.reference_judges\[own\].scores: got 'yes', .*one token"):
        adopt_reference_judge(
            tmp_path / "own", ReferenceJudge(name="own", scores={"yes": 1.0, "b": 0.0}), models / "reference"
        )
    config = ReferenceJudge(name="own", scores=JUDGING["scores"], rubric="why " * 80 + "{response}")
    with pytest.raises(InvalidValue, match=r"reward.reference_judges\[own\].rubric: got 'why why .*at most 63"):
        adopt_reference_judge(tmp_path / "own", config, models / "reference")
    assert not (tmp_path / "own").exists()


def test_a_function_is_adopted_with_the_digest_of_its_file(tmp_path: Path) -> None:
    config = Function(function="tests.reward_functions:length", higher_is="worse")
    adopt_external(tmp_path / "reward", config)
    record = read_reward(tmp_path / "reward")
    assert isinstance(record, FunctionReward)
    assert (config.name, len(record.source)) == ("length", 64)
    scorer = load_scorer(tmp_path / "reward", "length")
    assert scorer.score(PROMPTS, RESPONSES).tolist() == [-3.0, -5.0]


def test_a_reward_that_does_not_score_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match=r"reward\.functions\[nan\]: got .*gave nan"):
        adopt_external(tmp_path / "reward", Function(function="tests.reward_functions:nan"))
    with pytest.raises(InvalidValue, match=r"reward\.services\[127.0.0.1-9\]: got .*cannot be reached"):
        adopt_external(tmp_path / "reward", Service(url="http://127.0.0.1:9"))
    assert not (tmp_path / "reward").exists()
