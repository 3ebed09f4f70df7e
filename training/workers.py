"""Where shards are drawn: in this process, in one of vLLM's own, or by the actors of a Ray cluster."""

import gc
import json
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator, Sequence
from functools import cached_property
from importlib.util import find_spec
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import torch

from infalign.errors import EngineFailed, InfAlignError, InvalidValue
from training.config import Ray
from training.config import Rollouts as Config
from training.progress import bar
from training.runtime import prepare
from training.shards import Job, Shard, Worker
from training.vllm_sampler import vllm_version

GRACE = 20
"""Seconds in which an engine's process may end by itself."""

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun sets: an engine of its own is not one of the processes that train together."""
Finished = Generator[tuple[Shard, str], None, None]
"""Shards and their files, in the order in which they are finished."""


def check(config: Config) -> None:
    """See that what the config draws by is installed.

    Raises:
        InvalidValue: it is not.
    """
    if config.engine == "vllm" and vllm_version() is None:
        raise InvalidValue("rollouts.engine", "vllm", "transformers, unless `pip install 'infalign[cpu]'` (or gpu)")
    if config.ray and find_spec("ray") is None:
        raise InvalidValue("rollouts.ray", config.ray.address, "null, unless `pip install 'infalign[ray]'`")


def draw(job: Job, shards: Sequence[Shard], of: int, ray: Ray | None) -> Finished:
    """Draw ``shards``, the ones that are left ``of`` so many, and give each as soon as it is finished."""
    if ray:
        return on_ray(job, shards, ray)
    return apart(job, shards, of) if job.engine == "vllm" else here(job, shards, of)


def here(job: Job, shards: Sequence[Shard], of: int) -> Finished:
    """In this process."""
    worker = Worker(job)
    for shard in shards:
        yield shard, worker(shard, _stage(shard, of))


def apart(job: Job, shards: Sequence[Shard], of: int) -> Finished:
    """In a process that ends with the last shard.

    vLLM changes what it runs in (torch's threads, a process group, the GPU's memory), which the training that follows
    in this process would feel.

    Raises:
        EngineFailed: the process could not start its engine, or died.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what earlier stages have freed
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_send_all, args=(theirs, job, shards, of), daemon=True)
    process.start()
    theirs.close()
    try:
        for shard in shards:
            try:
                text, failure = ours.recv()
            except EOFError:
                process.join()
                raise EngineFailed(
                    f"rollouts, shard {shard.number}: the process of {job.engine} was killed "
                    f"(exit code {process.exitcode}; memory may be too small); finished shards are kept"
                ) from None
            if failure:
                raise EngineFailed(failure)
            yield shard, text
        process.join(GRACE)
    finally:
        process.terminate()
        process.join(GRACE)
        process.kill()
        process.join()


def _stage(shard: Shard, of: int) -> str:
    return f"rollouts {shard.number + 1}/{of}"


def _send_all(connection: Connection, job: Job, shards: Sequence[Shard], of: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent ends this process,
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # which then clears up after itself
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in LAUNCHED:
        os.environ.pop(name, None)
    actor = Actor(job)
    for shard in shards:
        connection.send(actor.outcome(shard, _stage(shard, of)))


def _end_with_parent() -> None:
    if parent := parent_process():
        wait([parent.sentinel])
        os._exit(1)


def on_ray(job: Job, shards: Sequence[Shard], config: Ray) -> Finished:
    """By actors of Ray Data, which read the models from where this process does.

    Raises:
        InvalidValue: there is no such cluster, or too little of it for the actors.
        EngineFailed: an actor could not start its engine, or died.
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
        numbered = {shard.number: shard for shard in shards}
        with bar("rollouts", len(shards)) as progress:
            for row in files.iter_rows():
                if row["failure"]:
                    raise EngineFailed(row["failure"])
                yield numbered[row["number"]], row["text"]
                progress.update(1)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[-1]
        raise EngineFailed(f"rollouts on Ray: {reason}; finished shards are kept") from error
    finally:
        ray.shutdown()


def check_room(resources: dict[str, float], config: Ray) -> None:
    """A cluster may grow to hold its actors, one machine does not."""
    room = resources.get("CPU", 0)
    if config.gpus:
        room = min(room, resources.get("GPU", 0))
    if config.replicas > room:
        kind = "GPUs and CPUs" if config.gpus else "CPUs"
        raise InvalidValue("rollouts.ray.replicas", config.replicas, f"{room:.0f} at most, for the {kind} there are")


class Actor:
    """A worker in another process, which hands over what went wrong as a text."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @cached_property
    def worker(self) -> Worker:
        """Made when first used, since Ray starts an actor whose beginning fails again and again."""
        prepare()
        return Worker(self.job)

    def outcome(self, shard: Shard, stage: str) -> tuple[str, str]:
        """The shard's file, and why there is none."""
        try:
            return self.worker(shard, stage), ""
        except InfAlignError as error:
            return "", str(error)
        except Exception as error:  # of a library: its trace stays here
            traceback.print_exc()
            return "", f"rollouts, shard {shard.number}: {type(error).__name__}: {error}; finished shards are kept"

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """As Ray Data calls it: a batch is one shard."""
        shard = Shard(int(batch["number"][0]), json.loads(batch["prompts"][0]))
        text, failure = self.outcome(shard, "rollouts")
        return {"number": [shard.number], "text": [text], "failure": [failure]}
