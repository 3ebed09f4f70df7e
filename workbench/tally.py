"""Counts the samples and the hits of each prompt while a campaign runs."""

from collections import defaultdict
from collections.abc import Sequence

from workbench.criteria import Criterion
from workbench.samples import Sample
from workbench.store import Store


class Tally:
    """Counts samples and hits.

    Args:
        store: The samples that there are.
        criterion: What a hit is.
    """

    def __init__(self, store: Store, criterion: Criterion) -> None:
        self._criterion = criterion
        self._counts: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        columns = store.read_columns(["prompt_id", *criterion.columns])
        self._count(columns["prompt_id"], columns)

    def add(self, samples: Sequence[Sample]) -> None:
        """Count new samples."""
        columns = {name: [getattr(sample, name) for sample in samples] for name in self._criterion.columns}
        self._count([sample.prompt_id for sample in samples], columns)

    def _count(self, prompt_ids: Sequence[str], columns: dict[str, list[object]]) -> None:
        for prompt_id, hit in zip(prompt_ids, self._criterion.flag(columns), strict=True):
            self._counts[prompt_id][0] += int(hit)
            self._counts[prompt_id][1] += 1

    def width(self, prompt_id: str) -> float:
        """Return the width of the 95% interval (Wilson) of a prompt's share of hits; 1 without samples."""
        from infalign.hits import wilson

        hits, samples = self._counts[prompt_id]
        if not samples:
            return 1.0
        interval = wilson(hits, samples)
        return float(interval.high - interval.low)
