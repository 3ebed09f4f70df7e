"""The report format of garak 0.17: JSON lines, with an attempt for each prompt and an eval for each detector.

A criterion is a detector. A score of 1 is a hit.
"""

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from workbench.criteria import Flags
from workbench.prompts import parse_messages
from workbench.report.figures import Report
from workbench.report.table import SampleTable
from workbench.store import write_atomically

COMPLETE = 2
"""garak's status of an attempt that is complete."""


def write_garak(path: Path, report: Report, table: SampleTable, flags: Mapping[str, Flags]) -> None:
    """Write a campaign as garak writes a run.

    Args:
        path: The file.
        report: Figures of the campaign.
        table: Its samples.
        flags: Which samples are hits, by criterion.
    """
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in _entries(report, table, flags))
    write_atomically(path, lambda new: new.write_text(text, encoding="utf-8"))


def _entries(report: Report, table: SampleTable, flags: Mapping[str, Flags]) -> Iterator[dict[str, Any]]:
    run = str(uuid5(NAMESPACE_URL, f"{report.campaign} {report.settings['bundle']}"))
    now = datetime.now(UTC).isoformat()
    name = f"infalign.{''.join(part.title() for part in report.campaign.split())}"
    target = {"plugins.target_type": "infalign", "plugins.target_name": report.settings["model"]}
    yield {"entry_type": "start_run setup", **target, "run.generations": report.least, "transient.run_id": run}
    yield {"entry_type": "init", "garak_version": "infalign export", "start_time": now, "run": run}
    texts, rows = table.texts("text"), zip(table.starts, table.counts, strict=True)
    for sequence, (start, count) in enumerate(rows):
        span = slice(int(start), int(start + count))
        yield {
            "entry_type": "attempt",
            "uuid": str(uuid5(NAMESPACE_URL, f"{run} {table.prompt_ids[sequence]}")),
            "seq": sequence,
            "status": COMPLETE,
            "probe_classname": name,
            "probe_params": {},
            "targets": [],
            "prompt": {"turns": _turns(table.prompt_texts[sequence]), "notes": {}},
            "outputs": [_message(text) for text in texts[span]],
            "detector_results": {criterion: flag[span].astype(float).tolist() for criterion, flag in flags.items()},
            "notes": table.tags[int(start)],
            "goal": "",
            "conversations": [],
            "reverse_translation_outputs": [],
            "intent": None,
        }
    for hits in report.hits:
        first = hits.curve[0].rate
        yield {
            "entry_type": "eval",
            "probe": name,
            "detector": hits.criterion,
            "passed": hits.samples - hits.hits,
            "fails": hits.hits,
            "nones": 0,
            "total_evaluated": hits.samples,
            "total_processed": hits.samples,
            "hit_at_k": {str(point.k): {"score": point.rate.value, "prompts": report.prompts} for point in hits.curve},
            "confidence_method": "wilson",
            "confidence": "0.95",
            "confidence_upper": first.high,
            "confidence_lower": first.low,
        }
    yield {"entry_type": "completion", "end_time": now, "run": run}


def _turns(prompt: str) -> list[dict[str, Any]]:
    messages = parse_messages(prompt) or []
    return [{"role": message["role"], "content": _message(str(message.get("content")))} for message in messages]


def _message(text: str) -> dict[str, Any]:
    return {"text": text, "lang": "*", "data_path": None, "data_type": None, "data_checksum": None, "notes": {}}
