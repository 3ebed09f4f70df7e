"""The engines of our server without the server: what it could reach at best.

    python engines.py BUNDLE

Each candidate is drawn and scored by itself, as the server does it, with the engines set up by the server's own code.
"""

import asyncio
import sys
from pathlib import Path
from random import Random

from loop import work
from transformers import AutoTokenizer

from infalign import read_bundle
from infalign.templates import render_conversation, render_prompt, tokenise
from server.engines import Sampling
from server.engines.vllm import VllmEngines
from server.settings import Settings


async def main(path: Path) -> None:
    """Answer loads by the engines of a bundle."""
    bundle = read_bundle(path)
    settings = Settings(max_n=256)
    engines = VllmEngines(bundle.policy().directory, bundle.reference, [bundle.reward_model], settings)
    tokenizer, judge = (AutoTokenizer.from_pretrained(each) for each in (bundle.reference, bundle.reward_model))
    await engines.start()
    random = Random(0)

    async def best_of_n(prompt: str, n: int, tokens: int) -> int:
        messages = [{"role": "user", "content": prompt}]
        read = tokenise(tokenizer, render_prompt(tokenizer, messages))
        seed = random.randrange(2**32)

        async def candidate(number: int) -> tuple[float, int]:
            sampling = Sampling(1.0, 1.0, 0, tokens, seed + number, bundle.policy().name, min_tokens=tokens)
            drawn = await engines.generate(read, sampling)
            [reward] = await engines.score([tokenise(judge, render_conversation(judge, messages, drawn.text))])
            return reward, drawn.tokens

        drawn = await asyncio.gather(*(candidate(number) for number in range(n)))
        return sum(count for _, count in drawn)

    try:
        await work(best_of_n)
    finally:
        engines.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
