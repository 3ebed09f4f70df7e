"""Stage ``rollouts``: K scored responses of the reference to every prompt, under the bundle's sampling law.

A file to a shard of prompts, ``00000.jsonl`` and so on, renamed into place when it is whole: a stage that was killed
goes on with the first that is missing.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from infalign.errors import InvalidValue
from infalign.manifest import SamplingLaw
from infalign.templates import Message
from training import data, workers
from training.config import Ray
from training.config import Rollouts as Config
from training.shards import Job, Rollouts, Shard, split


def draw_rollouts(
    directory: Path, data_directory: Path, reference: Path, reward: Path, config: Config, seed: int
) -> None:
    """Draw from the model in ``reference`` for every prompt of the data; see :func:`write_rollouts`."""
    law = SamplingLaw(max_tokens=config.max_tokens)
    job = Job(reference, reward, law, config.engine, config.samples, seed)
    write_rollouts(directory, data.read_prompts(data_directory), job, config.shard, config.ray)


def write_rollouts(
    directory: Path, prompts: Sequence[Sequence[Message]], job: Job, size: int, ray: Ray | None = None
) -> None:
    """Draw and score what is missing in ``directory``, ``size`` prompts to a shard.

    Raises:
        InvalidValue: there is no prompt.
        EngineFailed: what draws did not start, or died.
    """
    if not prompts:
        raise InvalidValue("rollouts", "no prompts", "at least one prompt to draw from")
    shards = split(prompts, size)
    missing = [shard for shard in shards if not _file(directory, shard).exists()]
    if not missing:
        return
    with closing(workers.draw(job, missing, len(shards), ray)) as finished:
        for shard, text in finished:
            file = _file(directory, shard)
            unfinished = file.with_suffix(".part")
            unfinished.write_text(text, encoding="utf-8")
            unfinished.rename(file)


def read_rollouts(directory: Path) -> Iterator[Rollouts]:
    """Every prompt's rollouts, in the order of the prompts."""
    for path in sorted(directory.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield Rollouts(**json.loads(line))


def _file(directory: Path, shard: Shard) -> Path:
    return directory / f"{shard.number:05d}.jsonl"
