"""Hit@k of a campaign by garak's own estimator, from what ``infalign report --export garak`` has written.

pip install garak
infalign report campaign --hit 'reward<-3' --export garak
python examples/garak_campaign.py campaign/garak.report.jsonl
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

from garak.analyze.hit_at_k import estimate_hit_at_k


def main(path: Path) -> None:
    """Print garak's estimates beside ours."""
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    counts = defaultdict(list)
    for entry in entries:
        if entry["entry_type"] == "attempt":
            for detector, scores in entry["detector_results"].items():
                counts[detector].append((len(scores), int(sum(scores))))
    for entry in entries:
        if entry["entry_type"] == "eval":
            ours = entry["hit_at_k"]
            for k, theirs in estimate_hit_at_k(counts[entry["detector"]], map(int, ours)).items():
                rates = f"{theirs['score']:.6f} by garak, {ours[str(k)]['score']:.6f} by infalign"
                print(f"{entry['detector']}: hit@{k} {rates}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
