"""The command ``infalign calibrate``: calibrates further prompts for a bundle."""

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from infalign.errors import InvalidValue
from infalign.home import bundle_path, home

if TYPE_CHECKING:
    from infalign.bundle import Bundle


@click.command(short_help="Calibrate prompts for a bundle.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option(
    "--engine", type=click.Choice(["vllm", "transformers"]), default="vllm", show_default=True, help="What draws."
)
@click.option(
    "--shard", type=click.IntRange(1), default=256, show_default=True, help="Prompts drawn and kept together."
)
@click.option("--ray", "address", metavar="ADDRESS", help="Draw on this Ray cluster: auto, local or an address.")
@click.option("--replicas", type=click.IntRange(1), default=1, show_default=True, help="Ray actors that draw.")
@click.option("--gpus", type=click.IntRange(0, 1), default=0, show_default=True, help="GPUs of a Ray actor.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the draws.")
@click.option(
    "--trust-rewards", is_flag=True, help="Run the functions, and ask the services and judges, that the bundle names."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Directory of the new bundle.  [default: BUNDLE itself]"
)
def calibrate(bundle: Path, prompts: Path, output: Path | None, **options: Any) -> None:
    """Draw the reference's answers to PROMPTS, score them, and add their calibrations to BUNDLE.

    BUNDLE is a directory, or a name below $INFALIGN_HOME/bundles. PROMPTS are JSON lines, or a JSON array, of rows with
    a `prompt` of text or messages. Prompts that the bundle knows already are left out. A run that was killed goes on
    where it stopped.
    """
    path = bundle if bundle.exists() or len(bundle.parts) > 1 else bundle_path(str(bundle))
    from training.interrupts import remember_interrupts
    from training.runtime import prepare_process

    with remember_interrupts():
        prepare_process()
        click.echo(str(extend_calibration(path, prompts, output or path, **options)))


def extend_calibration(
    path: Path,
    prompts: Path,
    output: Path,
    *,
    engine: str,
    shard: int,
    address: str | None,
    replicas: int,
    gpus: int,
    seed: int,
    trust_rewards: bool,
) -> Path:
    """Add the calibrations of further prompts to a bundle.

    Args:
        path: Directory of the bundle.
        prompts: File of the prompts.
        output: Directory of the new bundle.
        engine: Library that draws.
        shard: Prompts that are drawn and kept together.
        address: Ray cluster; None draws on this machine.
        replicas: Ray actors.
        gpus: GPUs of a Ray actor.
        seed: Seed of the draws.
        trust_rewards: Whether rewards that are not classifiers may run.

    Returns:
        Directory of the new bundle.

    Raises:
        BundleError: There is no intact bundle.
        InvalidValue: Prompts cannot be read, none is new, or reasoning takes more than the bundle's longest response.
        EngineFailed: The engine did not start, or died.
    """
    from filelock import FileLock

    from infalign.bundle import read_bundle
    from infalign.bundling import rewrite_bundle
    from infalign.combination import Combination
    from infalign.files import reward_models
    from infalign.reproduction import save_examples
    from infalign.rewards import check_trust
    from infalign.storage import save_calibration
    from infalign.table import CalibrationTable
    from training import workers
    from training.config import Ray, Rollouts
    from training.rollouts import read_rollouts, write_rollouts
    from training.seeds import derive_seed
    from training.shards import RolloutJob

    bundle = read_bundle(path)
    check_trust(reward_models(bundle.reward_model), trust_rewards)
    record = bundle.calibration
    ray = Ray(address=address, replicas=replicas, gpus=gpus) if address else None
    law = Rollouts.model_validate(
        {
            "samples": record.samples,
            "max_tokens": record.sampling.max_tokens,
            "engine": engine,
            "shard": shard,
            "ray": ray,
        }
    )
    workers.check_rollouts(law)
    keys, conversations = _read_new_prompts(bundle, prompts)
    job = RolloutJob(
        bundle.reference,
        bundle.reward_model,
        record.sampling,
        law.engine,
        record.samples,
        derive_seed(seed, "calibrate"),
        record.reasoning_parser,
    )
    parts = (record.reference, record.reward_model, record.reasoning_parser)
    made_from = [*parts, record.sampling.model_dump(), engine, shard, seed, keys]
    directory = home() / "runs" / "calibrate" / hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
    directory.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.with_suffix(".lock")):
        write_rollouts(directory, conversations, job, shard, ray)
        rewards = np.moveaxis(np.array([row.reward_matrix for row in read_rollouts(directory)]), -1, 0)
        tables = tuple(
            CalibrationTable(
                (*table.keys, *keys), np.concatenate([table.rewards, new]), record.estimator, record.resolution
            )
            for table, new in zip(bundle.combination.tables, rewards, strict=True)
        )
        with tempfile.TemporaryDirectory() as folder:
            calibration = Path(folder)
            combination = Combination(tables, bundle.combination.weights)
            save_calibration(calibration, combination, record.model_copy(update={"prompts": len(tables[0])}))
            save_examples(calibration, bundle.examples)
            return rewrite_bundle(bundle, output, calibration=calibration).path


def _read_new_prompts(bundle: "Bundle", file: Path) -> tuple[list[str], list[Sequence[Any]]]:
    """Keys and conversations of the prompts of a file that are not calibrated yet. Says what was left out."""
    from transformers import AutoTokenizer

    from infalign.files import context_length
    from infalign.templates import prompt_key, render_prompt, tokenise
    from training.data import make_tokenizer_check
    from training.data.defects import summarise
    from training.data.examples import parse_prompt, read_examples
    from training.data.files import read_files

    tokenizer = AutoTokenizer.from_pretrained(bundle.reference, trust_remote_code=False)
    examples, defects = read_examples(read_files([str(file)]), parse_prompt, check=make_tokenizer_check(tokenizer))
    room = context_length(bundle.reference) - bundle.calibration.sampling.max_tokens
    new: dict[str, Sequence[Any]] = {}
    for example in examples:
        rendering = render_prompt(tokenizer, example.prompt)
        key = prompt_key(rendering)
        if key in bundle.table:
            defects["calibrated already"] += 1
        elif key in new:
            defects["repeated"] += 1
        elif len(tokenise(tokenizer, rendering)) > room:
            defects["prompt too long"] += 1
        else:
            new[key] = example.prompt
    if defects:
        print(f"prompts: {defects.total()} left out: {summarise(defects)}", file=sys.stderr)
    if not new:
        raise InvalidValue("PROMPTS", str(file), "at least one prompt that the bundle has not calibrated")
    return list(new), list(new.values())
