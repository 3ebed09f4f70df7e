"""Stage ``rollouts``: draws K responses of the reference to every prompt and scores them.

The prompts are split into shards. Each shard has a file, ``00000.jsonl`` and so on, which is renamed into place when
it is complete. A stage that was killed goes on with the first shard that is missing.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from infalign.errors import InvalidValue
from infalign.manifest import SamplingLaw
from infalign.templates import Message
from training import workers
from training.config import Ray, Rollouts
from training.data import read_prompts
from training.shards import PromptRollouts, RolloutJob, Shard, split_shards


def draw_rollouts(directory: Path, *, data: Path, reference: Path, reward: Path, config: Rollouts, seed: int) -> None:
    """Draw and score rollouts for every prompt of the data.

    Args:
        directory: Directory of the stage.
        data: Directory of the stage ``data``.
        reference: Directory of the reference model.
        reward: Directory of the reward model, or of several.
        config: How the rollouts are drawn.
        seed: Seed of the stage.
    """
    law = SamplingLaw(max_tokens=config.max_tokens)
    job = RolloutJob(reference, reward, law, config.engine, config.samples, seed, config.reasoning_parser)
    write_rollouts(directory, read_prompts(data), job, config.shard, config.ray)


def write_rollouts(
    directory: Path, prompts: Sequence[Sequence[Message]], job: RolloutJob, size: int, ray: Ray | None = None
) -> None:
    """Draw, score and write the shards that are missing in ``directory``.

    Args:
        directory: Directory of the stage.
        prompts: All prompts.
        job: What is drawn for a prompt.
        size: Prompts per shard.
        ray: Ray cluster to draw on, or None for this machine.

    Raises:
        InvalidValue: There is no prompt, or there is no such parser. Or reasoning takes more than the longest response.
        EngineFailed: The engine did not start, or died.
    """
    if not prompts:
        raise InvalidValue("rollouts", "no prompts", "at least one prompt to draw from")
    shards = split_shards(prompts, size)
    missing = [shard for shard in shards if not _file(directory, shard).exists()]
    if not missing:
        return
    with closing(workers.draw(job, missing, len(shards), ray)) as results:
        for shard, text in results:
            file = _file(directory, shard)
            part = file.with_suffix(".part")
            part.write_text(text, encoding="utf-8")
            part.rename(file)


def read_rollouts(directory: Path) -> Iterator[PromptRollouts]:
    """Read the rollouts of every prompt, in the order of the prompts.

    Args:
        directory: Directory of the stage.

    Yields:
        The rollouts of one prompt.
    """
    for path in sorted(directory.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for line in file:
                yield PromptRollouts(**json.loads(line))


def _file(directory: Path, shard: Shard) -> Path:
    return directory / f"{shard.number:05d}.jsonl"
