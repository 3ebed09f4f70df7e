"""The log format of inspect_ai: a sample per response, with the response's number as the epoch.

It is written by inspect_ai itself, which has to be installed.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infalign.errors import InvalidValue
from workbench.criteria import Flags
from workbench.prompts import parse_messages
from workbench.report.figures import Report
from workbench.report.table import SampleTable


def write_inspect(path: Path, report: Report, table: SampleTable, flags: Mapping[str, Flags]) -> None:
    """Write a campaign as a log of inspect_ai.

    Args:
        path: The file, whose suffix is ``.json`` or ``.eval``.
        report: Figures of the campaign.
        table: Its samples.
        flags: Which samples are hits, by criterion. A hit is a score of 1.

    Raises:
        InvalidValue: inspect_ai is not installed.
    """
    try:
        from inspect_ai.log import (
            EvalConfig,
            EvalDataset,
            EvalLog,
            EvalMetric,
            EvalResults,
            EvalSample,
            EvalScore,
            EvalSpec,
            write_eval_log,
        )
        from inspect_ai.model import ModelOutput
        from inspect_ai.scorer import Score
    except ImportError as error:
        raise InvalidValue("--export", "inspect", "pip install inspect-ai, which writes its own logs") from error
    model = f"infalign/{report.settings['model']}"
    texts, ids, indices, prompts = (table.texts(name) for name in ("text", "prompt_id", "index", "prompt"))
    rewards, quantiles = table.numbers("reward"), table.numbers("quantile")
    samples = [
        EvalSample(
            id=ids[i],
            epoch=indices[i] + 1,
            input=_read_input(prompts[i]),
            target="",
            output=ModelOutput.from_content(model, texts[i]),
            scores={
                **{criterion: Score(value=int(flag[i])) for criterion, flag in flags.items()},
                "reward": Score(value=float(rewards[i])),
                "quantile": Score(value=float(quantiles[i])),
            },
            metadata=dict(table.tags[i]),
        )
        for i in range(len(table))
    ]
    scores = [
        EvalScore(
            name=hits.criterion,
            scorer=hits.criterion,
            reducer=f"at_least_1 of {point.k}",
            metrics={"mean": EvalMetric(name="mean", value=point.rate.value, metadata=point.rate.model_dump())},
        )
        for hits in report.hits
        for point in hits.curve
    ]
    log = EvalLog(
        status="success",
        eval=EvalSpec(
            created=datetime.now(UTC).isoformat(),
            task=f"infalign/{report.campaign}",
            dataset=EvalDataset(
                name=str(report.settings.get("file")), samples=report.prompts, sample_ids=table.prompt_ids
            ),
            model=model,
            config=EvalConfig(epochs=int(table.counts.max())),
            metadata=dict(report.settings),
        ),
        results=EvalResults(total_samples=len(table), completed_samples=len(table), scores=scores),
        samples=samples,
    )
    write_eval_log(log, str(path))


def _read_input(prompt: str) -> Any:
    """Make inspect_ai's input of a prompt: a text, or messages of the roles that it knows."""
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

    messages = parse_messages(prompt) or []
    if len(messages) == 1:
        return prompt
    kinds = {"system": ChatMessageSystem, "assistant": ChatMessageAssistant}
    return [kinds.get(m["role"], ChatMessageUser)(content=str(m.get("content"))) for m in messages]
