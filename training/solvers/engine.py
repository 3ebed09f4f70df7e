"""A vLLM engine that draws with the weights that the policy has while it trains."""

import os
import shutil
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_model as save_weights

from infalign.errors import InfAlignError
from infalign.manifest import SamplingLaw
from infalign.templates import Message
from training.engine_process import receive_result, start_process, stop_process
from training.memory import ENGINE_SHARE
from training.models import save_model
from training.runtime import prepare_process
from training.vllm_sampler import WEIGHTS, VllmSampler


class PolicyEngine:
    """An engine in a process of its own, on the same GPU if there is one.

    The weights of each step go through files: all of them, or those of the adapter if one is trained. Draws depend on
    the weights and the seed alone.

    Args:
        policy: The policy that is trained.
        tokenizer: Its tokenizer.
        reference: Directory of the reference, from which the engine starts.
        law: Sampling law.
        directory: Directory for the weights, which is removed in the end.

    Raises:
        EngineFailed: The engine did not start.
    """

    def __init__(self, policy: Any, tokenizer: Any, reference: Path, law: SamplingLaw, directory: Path) -> None:
        self._policy, self._tokenizer, self._directory = policy, tokenizer, directory
        adapter = directory if isinstance(policy, PeftModel) else None
        if adapter:  # the engine starts with it; whole weights come with the first draw
            self._write()
        gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._process, self._connection = start_process(_serve, reference, law, directory, adapter, gpu)
        self._receive()

    def draw(self, prompts: Sequence[Sequence[Message]], seed: int) -> list[list[int]]:
        """Draw one response to each prompt with the weights that the policy has now.

        Args:
            prompts: Conversations, equal ones next to each other.
            seed: Seed of the draws.

        Returns:
            Token ids of each response, with the end token unless the response was cut off.

        Raises:
            EngineFailed: The engine failed, or its process was killed.
        """
        self._write()
        with suppress(OSError):  # if it is gone, why is found out below
            self._connection.send((prompts, seed))
        return self._receive()

    def close(self) -> None:
        """Stop the engine."""
        stop_process(self._process)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _write(self) -> None:
        if isinstance(self._policy, PeftModel):
            save_model(self._policy, self._tokenizer, self._directory)
        else:
            self._directory.mkdir(parents=True, exist_ok=True)
            save_weights(self._policy, str(self._directory / WEIGHTS))

    def _receive(self) -> list[list[int]]:
        hint = "the same command goes on from the last checkpoint"
        return receive_result(  # type: ignore[no-any-return]
            self._process, self._connection, "ctrl: the process of vllm", hint
        )


def _serve(
    connection: Connection, reference: Path, law: SamplingLaw, directory: Path, adapter: Path | None, gpu: int | None
) -> None:
    """Run the engine: draw whenever the other side asks, with the weights that are in ``directory`` then."""
    options = {}
    if gpu is not None:  # vLLM takes the first that it sees
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[gpu] if visible else str(gpu)
        options = {"gpu_memory_utilization": ENGINE_SHARE}
    prepare_process()
    try:
        engine = VllmSampler.load(reference, law, adapter, **options)
        connection.send(([], ""))
        step = 0
        while True:
            prompts, seed = connection.recv()
            step += 1
            connection.send((engine.update(directory, step).draw(prompts, seed, None), ""))
    except EOFError:  # the other side is gone
        return
    except InfAlignError as error:
        connection.send(([], str(error)))
    except Exception as error:  # of a library: its trace stays here
        traceback.print_exc()
        connection.send(([], f"ctrl: vllm: {type(error).__name__}: {error}"))
