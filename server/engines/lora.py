"""The LoRA adapters of the policies' engine."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from infalign.errors import one_line
from infalign.files import adapter_rank
from server.engines.base import EnginesDown, Refused, RequestFailed
from server.engines.engine import Engine


class LoraAdapters:
    """The adapters that an engine draws with, and vLLM's requests that select them.

    They survive a restart of the engine. It then has those that were loaded last.

    Args:
        adapters: Directories of the adapters by policy name. None can be added if it is empty.
        limit: The most adapters at a time.
    """

    def __init__(self, adapters: Mapping[str, Path], limit: int) -> None:
        self._paths, self._limit = dict(adapters), limit
        self._requests: dict[str, Any] = {}
        self._last_id = self._rank = 0

    def options(self) -> dict[str, Any]:
        """Return the options of vLLM for the adapters. Also create the requests that select them."""
        if not self._paths:
            return {}
        from vllm.config.lora import MaxLoRARanks
        from vllm.lora.request import LoRARequest

        self._requests = {
            name: LoRARequest(name, number, str(path)) for number, (name, path) in enumerate(self._paths.items(), 1)
        }
        self._last_id = len(self._paths)
        rank = max(map(adapter_rank, self._paths.values()))
        self._rank = min(size for size in get_args(MaxLoRARanks) if size >= rank)
        return {"enable_lora": True, "max_loras": max(len(self._paths), self._limit), "max_lora_rank": self._rank}

    def request(self, policy: str | None) -> Any:
        """Return the request that selects the adapter of a policy; None if the policy is the engine's model itself.

        Args:
            policy: Name of the policy. None means the reference.

        Raises:
            Refused: There is no such adapter.
        """
        if policy is None or not self._paths:
            return None
        if policy not in self._requests:  # the policy was unloaded after the request came in
            raise Refused(f"model: the policy {policy} is not served any more", "model")
        return self._requests[policy]

    async def load(self, engine: Engine, policy: str, adapter: Path) -> None:
        """Load an adapter as a further policy.

        Args:
            engine: The engine.
            policy: Name of the policy.
            adapter: Directory of the adapter.

        Raises:
            EnginesDown: The engine cannot answer.
            Refused: The adapter cannot be loaded.
        """
        from vllm.lora.request import LoRARequest

        if not self._paths:
            raise Refused("the policy is a whole model; adapters can be loaded where the policies are adapters")
        if adapter_rank(adapter) > self._rank:
            raise Refused(f"its rank is {adapter_rank(adapter)}; the engine was started for at most {self._rank}")
        if len(self._requests) >= self._limit:
            raise Refused(f"{len(self._requests)} adapters are served already, the most that --max-adapters allows")
        self._last_id += 1
        request = LoRARequest(policy, self._last_id, str(adapter))
        try:
            async with engine.call() as llm:
                await llm.add_lora(request)
        except EnginesDown:
            raise
        except Exception as error:  # errors in the engine's process have no type of their own
            engine.check()
            raise Refused(one_line(error)) from error
        self._requests[policy], self._paths[policy] = request, adapter

    async def unload(self, engine: Engine | None, policy: str) -> None:
        """Unload an adapter that no request uses.

        Args:
            engine: The engine; None if it is not up. It starts again without the adapter.
            policy: Name of the policy.
        """
        del self._paths[policy]
        number = self._requests.pop(policy).lora_int_id
        if engine is None:
            return
        with suppress(EnginesDown, RequestFailed):
            async with engine.call() as llm:
                await llm.remove_lora(number)
