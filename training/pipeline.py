"""The pipeline: data → sft → reward → rollouts → calibrate → ctrl → evaluate → bundle.

Each stage leaves a directory named by its name and the hash of everything it was made from (its part of the config, its
own source, the directories it read, library versions), and is reused when that directory exists. A stage works
in a hidden sibling that is renamed when complete: a killed run is continued by the next one, and nothing half
made is ever read. A plan goes through the same stages without building them.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from infalign.bundle import Bundle, SamplingLaw, load_calibration, write_bundle
from infalign.calibration import CalibrationTable
from infalign.errors import InvalidValue
from infalign.procedures import Procedure, parse_procedure
from infalign.transforms import parse_transformation
from training import calibrate, ctrl, data, evaluate, reward_model, rollouts, runtime, sft, tokenizer
from training.card import model_card
from training.config import Config
from training.data import comparisons, corpus, helpdesk, judge, rows

LIBRARIES = ("infalign", "torch", "transformers", "trl")
FEWEST_DRAWS, MOST_DRAWS = 16, 4096
"""Per prompt and model when evaluating."""


@dataclass(frozen=True)
class StageReport:
    """One row of the summary."""

    name: str
    seconds: float
    reused: bool


class Stages:
    """Runs stages below one root and remembers what each took; ``dry`` only says what it would do.

    One process at a time may use a root: what a killed run left unfinished is removed.
    """

    def __init__(self, root: Path, dry: bool = False) -> None:
        self.root, self.dry = root, dry
        self.reports: list[StageReport] = []
        if not dry:
            root.mkdir(parents=True, exist_ok=True)
            for unfinished in root.glob(".*-*"):
                shutil.rmtree(unfinished)

    def run(self, name: str, build: Callable[[Path], Any], modules: tuple[Any, ...], *inputs: Any) -> Path:
        """The directory of stage ``name``, built by ``build`` unless it exists; ``inputs`` are JSON values or paths."""
        sources = [hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest() for module in modules]
        made_from = [str(item.name) if isinstance(item, Path) else item for item in inputs]
        libraries = {library: version(library) for library in LIBRARIES}
        key = hashlib.sha256(json.dumps([sources, made_from, libraries], sort_keys=True).encode()).hexdigest()[:12]
        finished = self.root / f"{name}-{key}"
        started = time.monotonic()
        reused = finished.exists()
        if not reused and not self.dry:
            unfinished = self.root / f".{name}-{key}"
            unfinished.mkdir()
            build(unfinished)
            unfinished.rename(finished)
        self.reports.append(StageReport(name, time.monotonic() - started, reused))
        return finished


@dataclass(frozen=True)
class Parts:
    """The directories that a bundle is made from."""

    data: Path
    reference: Path
    reward: Path
    calibration: Path
    policy: Path
    measured: Path


def plan(config: Config, runs: Path) -> list[StageReport]:
    """Every stage of a run, and whether it is already done; nothing is made."""
    stages = Stages(runs / config.name, dry=True)
    _run(config, stages)
    return stages.reports


def train(config: Config, runs: Path, output: Path) -> tuple[Bundle, list[StageReport]]:
    """Run every stage that is not already done and write the bundle at ``output``."""
    stages = Stages(runs / config.name)
    parts = _run(config, stages)
    started = time.monotonic()
    figures = _read(parts.measured / "figures.json")
    accuracy = _read(parts.reward / "accuracy.json")
    figures |= {"reward_accuracy": accuracy["value"]}
    figures |= {f"reward_accuracy_{end}": accuracy[end] for end in ("low", "high") if accuracy[end] == accuracy[end]}
    beta = _read(parts.policy / "beta.json")
    bundle = write_bundle(
        output,
        {
            "policy": parts.policy / "model",
            "reference": parts.reference / "model",
            "reward": parts.reward / "model",
            "calibration": parts.calibration,
        },
        model_card(config, beta, _read(parts.data / data.REPORT), figures),
        name=config.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        procedure=config.procedure,
        transformation=config.transformation,
        beta=beta,
        sampling=SamplingLaw(max_tokens=config.rollouts.max_tokens),
        measured=figures,
        libraries={library: version(library) for library in LIBRARIES},
    )
    stages.reports.append(StageReport("bundle", time.monotonic() - started, reused=False))
    return bundle, stages.reports


def _run(config: Config, stages: Stages) -> Parts:
    """Every stage but the bundle."""
    seed = config.seed
    law = SamplingLaw(max_tokens=config.rollouts.max_tokens)
    procedure = parse_procedure(config.procedure)
    draws = enough_draws(procedure)
    transformation = parse_transformation(config.transformation, procedure, kl=config.ctrl.target_kl)
    if transformation.span < float("inf"):
        transformation = transformation.normalised()

    written = stages.run(
        "data",
        lambda to: data.write_data(to, config),
        (data, rows, helpdesk, comparisons, corpus, judge, tokenizer),
        config.data.model_dump(),
        _digests(config),
        config.model.vocabulary,
        config.model.positions,
        config.rollouts.max_tokens,
        seed,
    )
    reference = stages.run(
        "sft",
        lambda to: sft.train_sft(to, written, config.model, config.sft, seed),
        (sft, runtime),
        config.model.model_dump(),
        config.sft.model_dump(),
        seed,
        written,
    )
    reward = stages.run(
        "reward",
        lambda to: reward_model.train_reward_model(to, written, reference / "model", config.reward, seed),
        (reward_model, runtime),
        config.reward.model_dump(),
        seed,
        written,
        reference,
    )
    drawn = stages.run(
        "rollouts",
        lambda to: rollouts.write_rollouts(
            to,
            data.read_prompts(written),
            reference / "model",
            reward / "model",
            law,
            config.rollouts.samples,
            seed,
        ),
        (rollouts,),
        config.rollouts.model_dump(),
        seed,
        written,
        reference,
        reward,
    )
    calibration = stages.run(
        "calibrate",
        lambda to: calibrate.write_calibration(to, drawn, reference / "model", reward / "model", law),
        (calibrate,),
        law.model_dump(),
        drawn,
        reference,
        reward,
    )

    @cache
    def scorer() -> rollouts.Scorer:
        return rollouts.Scorer.load(reward / "model")

    @cache
    def table() -> CalibrationTable:
        return load_calibration(calibration)[0]

    def align(to: Path) -> None:
        prompts = data.read_prompts(written, "train")
        beta = ctrl.train_ctrl(
            to, prompts, reference / "model", scorer(), table(), transformation, config.ctrl, law.max_tokens, seed
        )
        (to / "beta.json").write_text(json.dumps(beta), encoding="utf-8")

    policy = stages.run(
        "ctrl",
        align,
        (ctrl, rollouts, runtime),
        config.ctrl.model_dump(),
        config.procedure,
        config.transformation,
        law.model_dump(),
        seed,
        written,
        reference,
        reward,
        calibration,
    )

    def measure(to: Path) -> None:
        figures = evaluate.evaluate(
            rollouts.Sampler.load(policy / "model", law),
            rollouts.Sampler.load(reference / "model", law),
            scorer(),
            table(),
            data.read_prompts(written, "validation"),
            procedure,
            draws,
            seed + 1,
            _ground_truth() if config.data.helpdesk else None,
        )
        (to / "figures.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")

    measured = stages.run(
        "evaluate", measure, (evaluate,), config.procedure, seed, policy, reference, reward, calibration
    )
    return Parts(written, reference, reward, calibration, policy, measured)


def _digests(config: Config) -> list[str]:
    """SHA-256 of every data file: another file under the same name is other data.

    Raises:
        InvalidValue: there is no such file.
    """
    if config.data.helpdesk:
        return []
    found = []
    for path in map(Path, config.data.comparisons[1].paths):
        if not path.is_file():
            raise InvalidValue("data", str(path), "a file of JSON lines, .jsonl or .jsonl.gz")
        found.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return found


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def enough_draws(procedure: Procedure) -> int:
    """Draws per prompt that the estimates of ``procedure`` can be made from.

    Raises:
        InvalidValue: they would be more than the evaluation draws.
    """
    draws = FEWEST_DRAWS
    while np.isnan(procedure.order_weights(draws)).any():
        draws *= 2
        if draws > MOST_DRAWS:
            raise InvalidValue("procedure", str(procedure), f"one that {MOST_DRAWS} draws are enough for")
    return draws


def _ground_truth() -> evaluate.Judge:
    by_text = {prompt.text: prompt for prompt in corpus.prompts()}
    return lambda question, answer: judge.judge(by_text[question], answer).score
