"""A client of two vLLM servers, as one would write it by hand: one call that draws, one that scores.

python vllm_client.py http://127.0.0.1:8001 http://127.0.0.1:8002
"""

import asyncio
import sys

import httpx
from loop import work


def judged(prompt: str, response: str) -> str:
    """The conversation as the benchmark's chat template renders it."""
    return f"<|user|>{prompt}<|end|><|assistant|>{response}<|end|>"


async def main(policy: str, reward: str) -> None:
    """Answer loads through the servers of the two models."""
    async with httpx.AsyncClient(timeout=3600, limits=httpx.Limits(max_connections=None)) as client:

        async def best_of_n(prompt: str, n: int, tokens: int) -> int:
            body = {"model": "policy", "messages": [{"role": "user", "content": prompt}], "n": n}
            body |= {"max_tokens": tokens, "min_tokens": tokens, "temperature": 1}
            drawn = (await client.post(f"{policy}/v1/chat/completions", json=body)).raise_for_status().json()
            texts = [judged(prompt, choice["message"]["content"]) for choice in drawn["choices"]]
            body = {"model": "reward", "input": texts, "use_activation": False}
            scored = (await client.post(f"{reward}/classify", json=body)).raise_for_status().json()
            max(range(n), key=lambda index: scored["data"][index]["probs"][0])
            return int(drawn["usage"]["completion_tokens"])

        await work(best_of_n)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
