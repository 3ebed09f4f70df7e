"""How fast sampling with a seed per row is compared with vLLM's own sampler, on one core.

python -m benchmarks.seeded_sampling
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from functools import partial
from types import SimpleNamespace

import torch

from benchmarks.method import time_work
from server.engines.seeded_sampler import sample

ROWS = 64
VOCABULARIES = (4_096, 49_152, 128_256)
ROW = "{:<12}{:>16}{:>22}{:>18}{:>8}{:>18}"


def ours(logits: torch.Tensor, generators: dict[int, torch.Generator]) -> torch.Tensor:
    """Draw a token for each row, as the server's engines on CPU do."""
    return sample(logits.softmax(-1, torch.float32), generators)


def main() -> None:
    """Print a line for each vocabulary."""
    from vllm.v1.sample.ops.topk_topp_sampler import TopKTopPSampler

    settings = SimpleNamespace(logprobs_mode="raw_logprobs", use_fp64_gumbel=False)
    vllm = partial(TopKTopPSampler.forward_cpu, settings, k=None, p=None)
    print(f"{ROWS} rows, milliseconds a step")
    print(ROW.format("vocabulary", "vLLM, seeded", "vLLM, without seeds", "ours, seeded", "ratio", "ratio to unseeded"))
    for vocabulary in VOCABULARIES:
        logits = torch.randn(ROWS, vocabulary, generator=torch.Generator().manual_seed(0))
        generators = {row: torch.Generator().manual_seed(row) for row in range(ROWS)}
        seeded, unseeded, own = (
            1000 * time_work(work, repeats=7)[0]
            for work in (
                partial(vllm, logits, generators),
                partial(vllm, logits, {}),
                partial(ours, logits, generators),
            )
        )
        times = (f"{one:.2f}" for one in (seeded, unseeded, own))
        print(ROW.format(f"{vocabulary:,}", *times, f"{seeded / own:.0f}x", f"{unseeded / own:.1f}x"))


if __name__ == "__main__":
    main()
