"""Draws shards in this process, in a subprocess (vLLM), or with the actors of a Ray cluster."""

import json
import logging
import os
import traceback
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import cached_property
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

from infalign.errors import EngineFailed, InfAlignError, InvalidValue
from training.config import Ray, Rollouts
from training.engine_process import GRACE, receive_result, start_process, stop_process
from training.progress import make_bar
from training.runtime import prepare_process
from training.shards import RolloutJob, Shard, ShardWorker
from training.vllm_sampler import vllm_version

Results = Generator[tuple[Shard, str], None, None]
"""Yields shards and the contents of their files, in the order in which they are finished."""


def check_engine(key: str, engine: str) -> None:
    """Check that the library that draws is installed.

    Args:
        key: Name of the setting.
        engine: The library.

    Raises:
        InvalidValue: It is not installed.
    """
    if engine == "vllm" and vllm_version() is None:
        raise InvalidValue(key, "vllm", "transformers, unless `pip install 'infalign[cpu]'` (or gpu)")


def check_rollouts(config: Rollouts) -> None:
    """Check that the packages that draw the rollouts are installed.

    Args:
        config: How the rollouts are drawn.

    Raises:
        InvalidValue: A package is not installed.
    """
    check_engine("rollouts.engine", config.engine)
    if config.ray and find_spec("ray") is None:
        raise InvalidValue("rollouts.ray", config.ray.address, "null, unless `pip install 'infalign[ray]'`")


def draw(job: RolloutJob, shards: Sequence[Shard], total: int, ray: Ray | None) -> Results:
    """Draw shards and yield each as soon as it is finished.

    Args:
        job: What is drawn.
        shards: Shards that are missing.
        total: Number of all shards, for the progress bar.
        ray: Ray cluster to draw on, or None for this machine.
    """
    if ray:
        return draw_on_ray(job, shards, ray)
    return draw_in_subprocess(job, shards, total) if job.engine == "vllm" else draw_in_process(job, shards, total)


def draw_in_process(job: RolloutJob, shards: Sequence[Shard], total: int) -> Results:
    """Draw shards in this process.

    Args:
        job: What is drawn.
        shards: Shards that are missing.
        total: Number of all shards.
    """
    worker = ShardWorker(job)
    for shard in shards:
        yield shard, worker(shard, _progress_name(shard, total))


def draw_in_subprocess(job: RolloutJob, shards: Sequence[Shard], total: int) -> Results:
    """Draw shards in a subprocess that ends with the last shard.

    Args:
        job: What is drawn.
        shards: Shards that are missing.
        total: Number of all shards.

    Raises:
        EngineFailed: The subprocess could not start its engine, or died.
    """
    process, receiver = start_process(_send_all, job, shards, total)
    try:
        for shard in shards:
            name = f"rollouts, shard {shard.number}: the process of {job.engine}"
            text = receive_result(process, receiver, name, "finished shards are kept")
            yield shard, text
        process.join(GRACE)
    finally:
        stop_process(process)


def _progress_name(shard: Shard, total: int) -> str:
    return f"rollouts {shard.number + 1}/{total}"


def _send_all(connection: Connection, job: RolloutJob, shards: Sequence[Shard], total: int) -> None:
    actor = Actor(job)
    for shard in shards:
        connection.send(actor.try_shard(shard, _progress_name(shard, total)))


def draw_on_ray(job: RolloutJob, shards: Sequence[Shard], config: Ray) -> Results:
    """Draw shards with actors of Ray Data. They read the models from the same paths as this process.

    Args:
        job: What is drawn.
        shards: Shards that are missing.
        config: The cluster and its actors.

    Raises:
        InvalidValue: There is no such cluster, or it has too few CPUs or GPUs for the actors.
        EngineFailed: An actor could not start its engine, or died.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray.data import ActorPoolStrategy, DataContext, from_items

    try:
        ray.init(address=config.address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise InvalidValue("rollouts.ray.address", config.address, "a cluster that runs, or local") from error
    try:
        if config.address == "local":
            check_room(ray.cluster_resources(), config)
        context = DataContext.get_current()
        context.enable_progress_bars = context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"number": shard.number, "prompts": json.dumps(shard.prompts)} for shard in shards]
        files = from_items(rows, override_num_blocks=len(rows)).map_batches(
            Actor,
            fn_constructor_args=(job,),
            compute=ActorPoolStrategy(size=min(config.replicas, len(shards))),
            batch_size=1,
            num_cpus=1,
            num_gpus=config.gpus,
        )
        shards_by_number = {shard.number: shard for shard in shards}
        # Closed before Ray is shut down. A thread of Ray Data that runs on would reach for the cluster that is gone,
        # and Ray would end this process after a minute.
        with make_bar("rollouts", len(shards)) as progress, closing(iter(files.iter_rows())) as results:
            for row in results:
                if row["failure"]:
                    raise EngineFailed(row["failure"])
                yield shards_by_number[row["number"]], row["text"]
                progress.update(1)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise EngineFailed(f"rollouts on Ray: {reason}; finished shards are kept") from error
    finally:
        ray.shutdown()


def check_room(resources: dict[str, float], config: Ray) -> None:
    """Check that one machine has room for all actors. A cluster is not checked, since it may grow.

    Args:
        resources: CPUs and GPUs of the machine.
        config: The actors.

    Raises:
        InvalidValue: There are more actors than CPUs or GPUs.
    """
    room = resources.get("CPU", 0)
    if config.gpus:
        room = min(room, resources.get("GPU", 0))
    if config.replicas > room:
        kind = "GPUs and CPUs" if config.gpus else "CPUs"
        raise InvalidValue("rollouts.ray.replicas", config.replicas, f"{room:.0f} at most, for the {kind} there are")


class Actor:
    """Draws shards in another process, and returns failures as text.

    Args:
        job: What is drawn.
    """

    def __init__(self, job: RolloutJob) -> None:
        self.job = job

    @cached_property
    def worker(self) -> ShardWorker:
        """The worker. It is made on first use, since Ray starts an actor again and again if its constructor fails."""
        prepare_process()
        return ShardWorker(self.job)

    def try_shard(self, shard: Shard, stage: str) -> tuple[str, str]:
        """Draw one shard.

        Args:
            shard: The shard.
            stage: Name that the progress bar shows.

        Returns:
            Contents of the shard's file, and the reason if it could not be drawn. One of them is empty.
        """
        try:
            return self.worker(shard, stage), ""
        except InfAlignError as error:
            return "", str(error)
        except Exception as error:  # of a library: its trace stays here
            traceback.print_exc()
            return "", f"rollouts, shard {shard.number}: {type(error).__name__}: {error}; finished shards are kept"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Draw a batch of Ray Data, which is one shard."""
        shard = Shard(int(batch["number"][0]), json.loads(batch["prompts"][0]))
        text, failure = self.try_shard(shard, "rollouts")
        return {"number": [shard.number], "text": [text], "failure": [failure]}
