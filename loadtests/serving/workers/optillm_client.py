"""A client of optillm's proxy, whose best-of-n asks the drawing model to rate its own candidates.

python optillm_client.py http://127.0.0.1:8003
"""

import asyncio
import sys

import httpx
from loop import work


async def main(url: str) -> None:
    """Answer loads through the proxy, which knows N from its own options."""
    async with httpx.AsyncClient(base_url=url, timeout=3600) as client:

        async def best_of_n(prompt: str, n: int, tokens: int) -> int:
            body = {"model": "bon-policy", "messages": [{"role": "user", "content": prompt}], "max_tokens": tokens}
            answer = (await client.post("/v1/chat/completions", json=body)).raise_for_status().json()
            return int(answer["usage"]["completion_tokens"])

        await work(best_of_n)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
