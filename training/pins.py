"""Pins the models of a config that come from the hub, so that every load of a run reads the same revision."""

from collections.abc import Sequence
from contextlib import suppress
from typing import TypeVar

from infalign.errors import InvalidValue
from infalign.manifest import Origin
from training import processes
from training.config import Classifier, Config, Judge
from training.hub import pin_model, split_source

GivenT = TypeVar("GivenT", Classifier, Judge)


def pin_models(config: Config, strict: bool = True) -> Config:
    """Replace the revisions of all models by the commits that they stand for now.

    Args:
        config: Config of a run.
        strict: Whether a model that cannot be had is an error. Otherwise it stays as it is.

    Returns:
        The config with ``ID@COMMIT`` as the path of each model that comes from the hub.

    Raises:
        InvalidValue: A model cannot be had.
    """

    def pin(path: str, key: str, kind: str) -> str:
        with suppress(*(() if strict else (InvalidValue,))):
            path = pin_model(path, key, kind)
        return processes.broadcast(path)

    base, reward = config.model.base, config.reward
    if base:
        base = base.model_copy(update={"path": pin(base.path, "model.base.path", "a causal LM")})

    def pin_each(section: str, models: Sequence[GivenT], kind: str) -> tuple[GivenT, ...]:
        paths = [pin(model.path, f"reward.{section}[{model.name}].path", kind) for model in models]
        return tuple(model.model_copy(update={"path": path}) for model, path in zip(models, paths, strict=True))

    pinned = {
        "classifiers": pin_each("classifiers", reward.classifiers, "a sequence classifier"),
        "judges": pin_each("judges", reward.judges, "a causal LM"),
    }
    model = config.model.model_copy(update={"base": base})
    return config.model_copy(update={"model": model, "reward": reward.model_copy(update=pinned)})


def list_origins(config: Config) -> dict[str, Origin]:
    """List the models of a pinned config that come from the hub.

    Args:
        config: Config that :func:`pin_models` has returned.

    Returns:
        Each model and its revision, by where it is in the bundle.
    """
    paths = {"reference": config.model.base.path} if config.model.base else {}
    several = len(config.reward.models) > 1
    paths |= {f"reward/{model.name}" if several else "reward": model.path for model in config.reward.given_models}
    split = {part: split_source(path) for part, path in paths.items()}
    return {part: Origin(model=name, revision=revision) for part, (name, revision) in split.items() if revision}
