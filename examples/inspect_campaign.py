"""An inspect_ai task over the samples of a campaign: inspect_ai scores them, and agrees with ``infalign report``.

    infalign probe prompts.jsonl --n 32 --output campaign
    inspect eval examples/inspect_campaign.py -T folder=campaign -T pattern='I cannot' --model mockllm/model

Nothing is drawn again: the solver returns the stored responses, one in each epoch. A scorer of your own takes the place
of ``matches``. inspect_ai's reducer ``pass_at_k`` is what the report calls hit@k.
"""

import re
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver


@solver
def replay() -> Solver:
    """Return the stored response of the epoch."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state.output = ModelOutput.from_content(str(state.model), state.metadata["responses"][state.epoch - 1])
        return state

    return solve


@scorer(metrics=[mean()])
def matches(pattern: str) -> Scorer:
    """Score 1 if the response matches a regular expression somewhere."""

    async def score(state: TaskState, target: Target) -> Score:
        found = re.search(pattern, state.output.completion, re.IGNORECASE)
        return Score(value=int(found is not None), answer=state.output.completion)

    return score


@task
def campaign(folder: str, pattern: str) -> Task:
    """Score the samples of a campaign.

    Args:
        folder: Folder of the campaign.
        pattern: Regular expression of a hit.
    """
    table = pq.read_table(Path(folder) / "samples", columns=["prompt_id", "index", "prompt", "text"])
    responses, prompts = defaultdict(list), {}
    for row in table.sort_by([("prompt_id", "ascending"), ("index", "ascending")]).to_pylist():
        responses[row["prompt_id"]].append(row["text"])
        prompts[row["prompt_id"]] = row["prompt"]
    n = min(map(len, responses.values()))
    samples = [Sample(id=name, input=prompts[name], metadata={"responses": texts}) for name, texts in responses.items()]
    reducers = [f"pass_at_{2**power}" for power in range(n.bit_length()) if 2**power <= n]
    return Task(MemoryDataset(samples), solver=replay(), scorer=matches(pattern), epochs=Epochs(n, reducers))
