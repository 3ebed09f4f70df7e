"""Adopts rewards that already exist: classifiers, judges, functions and services.

In every reward that this leaves, a high number is good, and a model needs no setting but its own files. A classifier
with several outputs becomes one with the output that counts. A judge becomes a classifier with an output for each score
that it may write, whose rows are those of its language model head. So all models are loaded and served alike.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from infalign.errors import InvalidValue
from infalign.rewards import (
    FunctionReward,
    JudgeReward,
    ReferenceJudgeReward,
    RewardFailed,
    ServiceReward,
    open_reward,
    save_reward,
)
from infalign.rewards.rubric import rubric_template, score_tokens
from training.config import Classifier, External, Function, Judge, ReferenceJudge, RemoteJudge, Reward, Service
from training.models import CAUSAL, CLASSIFIER, load_causal, new_classifier, read_causal, read_classifier, save_model
from training.reading import PROMPT, RESPONSES, check_reading
from training.reference_judge import ReferenceScorer, next_logprobs
from training.scorer import Scorer
from training.tokenizer import read_tokenizer, set_template, set_token

PADS_WITH_END = (
    "If it was trained to be read at the end, give pad_token, a token that ends no conversation; if one token early, a "
    "chat_template that does not write that token"
)
"""What to do about a classifier that pads with its end token."""
RECORDS: dict[type[External], tuple[Any, str]] = {
    Function: (FunctionReward, "functions"),
    Service: (ServiceReward, "services"),
    RemoteJudge: (JudgeReward, "remote_judges"),
}
"""Class of the record of each reward that no model of this machine computes, and its key in the section ``reward``."""
LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Settings of models that change the logits after the head."""


def adopt_rewards(config: Reward, locate: Callable[[str], Path], reference: Path | None = None) -> None:
    """Save every reward of a run that already exists.

    Args:
        config: Which rewards there are.
        locate: Returns the directory of a reward by its name.
        reference: Directory of the reference. It may be left out if the reference is not a judge.

    Raises:
        InvalidValue: A reward cannot be used.
    """
    for classifier in config.classifiers:
        adopt_classifier(locate(classifier.name), classifier)
    for judge in config.judges:
        adopt_judge(locate(judge.name), judge)
    for reference_judge in config.reference_judges:
        if reference:
            adopt_reference_judge(locate(reference_judge.name), reference_judge, reference)
    for external in config.external:
        adopt_external(locate(external.name), external)


def adopt_classifier(target: Path, config: Classifier) -> None:
    """Save a classifier as a reward model, with its sign turned if high means worse.

    Args:
        target: Directory that the model is saved in.
        config: Which classifier it is.

    Raises:
        InvalidValue: There is no such classifier, its checkpoint does not fit, it has several outputs of which none is
            chosen, it has no chat template, or a text gets several rewards.
    """
    key = f"reward.classifiers[{config.name}]"
    model = read_classifier(config.path, f"{key}.path")
    tokenizer = read_tokenizer(config.path, f"{key}.path", CLASSIFIER)
    select_output(model, config.label, f"{key}.label")
    if config.text is not None:
        tokenizer.chat_template = rubric_template(config.text, _tokens_around(tokenizer))
    set_template(tokenizer, config.chat_template, f"{key}.chat_template", config.path)
    text_config = model.config.get_text_config()
    if config.pad_token:
        set_token(tokenizer, "pad_token", config.pad_token, f"{key}.pad_token", config.path)
        text_config.pad_token_id = tokenizer.pad_token_id
    check_reading(Scorer(model, tokenizer), f"{key}.path", config.path, PADS_WITH_END)
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        text_config.pad_token_id = tokenizer.pad_token_id
    if config.higher_is == "worse":
        turn_sign(model)
    save_model(model, tokenizer, target)


@torch.no_grad()
def select_output(model: Any, label: str | int | None, key: str) -> None:
    """Leave a classifier only the output that counts, in place.

    Of two outputs that exclude each other, the softmax depends on the difference of the logits alone. So the new output
    is that difference, which orders texts exactly as the probability does. Of more outputs, or of two that do not
    exclude each other, it is the logit itself.

    Args:
        model: The classifier.
        label: Name or number of the output. It may be left out if there is only one.
        key: Name of the setting that error messages blame.

    Raises:
        InvalidValue: There is no such output, or one of several has to be chosen.
    """
    config = model.config
    labels = {int(output): str(name) for output, name in config.id2label.items()}
    matches = [output for output, name in labels.items() if label is None or str(label) in (str(output), name)]
    if len(matches) != 1:
        listing = ", ".join(f"{output} ({name})" for output, name in sorted(labels.items()))
        raise InvalidValue(key, label, f"which of the classifier's outputs counts: {listing}")
    if len(labels) == 1:
        return
    (output,) = matches
    parent, name, head = _head(model)
    if head.out_features != len(labels):
        raise InvalidValue(key, label, "a classifier whose last layer is linear; give one with one output")
    new = torch.nn.Linear(head.in_features, 1, bias=head.bias is not None, dtype=head.weight.dtype)
    exclusive = len(labels) == 2 and config.problem_type != "multi_label_classification"
    for tensor, source in ((new.weight, head.weight), (new.bias, head.bias)):
        if tensor is not None:
            tensor.copy_(source[output] - source[1 - output] if exclusive else source[output])
    setattr(parent, name, new)
    model.num_labels = config.num_labels = 1
    config.id2label, config.label2id = {0: labels[output]}, {labels[output]: 0}
    config.problem_type = None


@torch.no_grad()
def turn_sign(model: Any) -> None:
    """Negate the output of a classifier, in place, by the weight and bias of its last linear layer."""
    _, _, head = _head(model)
    head.weight.neg_()
    if head.bias is not None:
        head.bias.neg_()


@torch.no_grad()
def adopt_judge(target: Path, config: Judge) -> None:
    """Save a language model as a judge: a classifier with an output for each score that it may write.

    Args:
        target: Directory that the judge is saved in.
        config: Which model it is, its rubric and its scores.

    Raises:
        InvalidValue: There is no such model, it has no chat template, a score is not one token, or the model changes
            its logits in a way that a classifier does not.
    """
    key = f"reward.judges[{config.name}]"
    tokenizer = read_tokenizer(config.path, f"{key}.path", CAUSAL)
    set_template(tokenizer, None, f"{key}.path", config.path)
    tokenizer.chat_template = rubric_template(config.rubric, str(tokenizer.chat_template))
    tokens = list(score_tokens(tokenizer, config.scores, f"{key}.scores"))
    head = read_causal(config.path, f"{key}.path").get_output_embeddings()
    model = new_classifier(config.path, len(tokens), f"{key}.path")
    text_config = model.config.get_text_config()
    changes = [name for name in LOGIT_CHANGES if getattr(text_config, name, None) not in (None, 1, 1.0)]
    if changes or head.bias is not None:
        cause = changes[0] if changes else "a bias of the head"
        raise InvalidValue(f"{key}.path", config.path, f"a causal LM without {cause}; serve it and give it by its url")
    model.score.weight.copy_(head.weight[tokens])
    sign = 1 if config.higher_is == "better" else -1
    names = [f"{sign * value:g}" for value in config.scores.values()]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: output for output, name in enumerate(names)}
    if text_config.pad_token_id is None:
        text_config.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokens[0]
    values = tuple(map(float, names))
    check_reading(Scorer(model, tokenizer, values=values), f"{key}.path", config.path, PADS_WITH_END)
    save_model(model, tokenizer, target)


def adopt_reference_judge(target: Path, config: ReferenceJudge, reference: Path) -> None:
    """Save how the reference judges, after it has judged a few responses. Its weights are not saved again.

    Args:
        target: Directory that stands for the reward.
        config: The rubric and the scores.
        reference: Directory of the reference.

    Raises:
        InvalidValue: A score is not one token, or the reference cannot judge.
    """
    record = ReferenceJudgeReward(**config.model_dump(include=set(ReferenceJudgeReward.model_fields)))
    ask = partial(next_logprobs, load_causal(reference))
    try:
        ReferenceScorer.create(config.name, record, reference, ask).score([PROMPT] * len(RESPONSES), RESPONSES)
    except RewardFailed as error:
        key, start = f"reward.reference_judges[{config.name}].rubric", config.rubric.split("\n")[0]
        raise InvalidValue(key, start, f"one that the reference can judge by ({error})") from error
    save_reward(record, target)


def adopt_external(target: Path, config: External) -> None:
    """Save which function, service or remote judge is a reward, after it has scored a few responses.

    Args:
        target: Directory that stands for the reward.
        config: Which reward it is.

    Raises:
        InvalidValue: It cannot be opened, or does not score.
    """
    kind, section = RECORDS[type(config)]
    record = kind(**config.model_dump(include=set(kind.model_fields)))
    reward = open_reward(config.name, record)
    try:
        reward.score([PROMPT] * len(RESPONSES), RESPONSES)
    except RewardFailed as error:
        source = config.function if isinstance(config, Function) else config.url
        raise InvalidValue(f"reward.{section}[{config.name}]", source, f"a reward that scores ({error})") from error
    finally:
        reward.close()
    save_reward(record, target)


def _head(model: Any) -> tuple[Any, str, Any]:
    """The last linear layer of a classifier, with the module that holds it and its name there."""
    name, head = [pair for pair in model.named_modules() if isinstance(pair[1], torch.nn.Linear)][-1]
    parent, _, attribute = name.rpartition(".")
    return model.get_submodule(parent), attribute, head


def _tokens_around(tokenizer: Any) -> tuple[str, str]:
    """The control tokens that a tokenizer writes before and after a text, such as [CLS] and [SEP]."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    tokens = tokenizer("a")["input_ids"]
    start = next(place for place in range(len(tokens)) if tokens[place : place + len(plain)] == plain)
    around = tokens[:start], tokens[start + len(plain) :]
    before, after = ("".join(tokenizer.convert_ids_to_tokens(part)) for part in around)
    return before, after
