"""its_hub's own BestOfN on two vLLM servers. Runs in an environment with `its_hub[lm]`.

    python its_hub_client.py http://127.0.0.1:8001 http://127.0.0.1:8002

its_hub has no reward model that asks a server, so the one here does, with one call for all candidates.
"""

import asyncio
import sys

import aiohttp
from its_hub.api import AbstractOutcomeRewardModel
from its_hub.core.algorithms.bon import BestOfN
from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
from loop import work


class Classifier(AbstractOutcomeRewardModel):
    """The reward model that a vLLM server serves."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url, self.session = url, session

    async def ascore(self, conversations, orchestrator=None, **_):
        """The score of each conversation."""
        several = not conversations or isinstance(conversations[0], list)
        texts = [
            "".join(f"<|{turn.role}|>{turn.content}<|end|>" for turn in conversation)
            for conversation in (conversations if several else [conversations])
        ]
        body = {"model": "reward", "input": texts, "use_activation": False}
        async with self.session.post(f"{self.url}/classify", json=body) as answer:
            answer.raise_for_status()
            scores = [row["probs"][0] for row in (await answer.json())["data"]]
        return scores if several else scores[0]

    def score(self, conversations, **options):
        """Required by its_hub, not used here."""
        return asyncio.run(self.ascore(conversations, **options))


async def main(policy: str, reward: str) -> None:
    """Answer loads through the servers of the two models."""
    async with aiohttp.ClientSession() as session:
        algorithm = BestOfN(Classifier(reward, session))

        async def best_of_n(prompt: str, n: int, tokens: int) -> int:
            model = OpenAICompatibleLanguageModel(
                f"{policy}/v1", "none", "policy", max_completion_tokens=tokens, temperature=1
            )
            async with model:
                result = await algorithm.ainfer(model, prompt, n, return_response_only=False)
            return result.usage.completion_tokens

        await work(best_of_n)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
