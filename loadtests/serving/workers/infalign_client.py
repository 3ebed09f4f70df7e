"""A client of our server: one call for each request.

python infalign_client.py http://127.0.0.1:8000
"""

import asyncio
import sys

import httpx
from loop import work


async def main(url: str) -> None:
    """Answer loads through the server at ``url``."""
    async with httpx.AsyncClient(base_url=url, timeout=3600, limits=httpx.Limits(max_connections=None)) as client:

        async def best_of_n(prompt: str, n: int, tokens: int) -> int:
            body = {"messages": [{"role": "user", "content": prompt}], "n": n}
            body |= {"max_tokens": tokens, "min_tokens": tokens, "temperature": 1}
            answer = (await client.post("/v1/best-of-n", json=body)).raise_for_status().json()
            return int(answer["usage"]["completion_tokens"])

        await work(best_of_n)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
