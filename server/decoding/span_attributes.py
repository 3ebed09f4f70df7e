"""Attributes of trace spans, with OpenTelemetry's names where there are any."""

from typing import Any

from server.decoding.jobs import Job
from server.decoding.reader import Prompt
from server.engines import Sampling
from server.engines.turns import Turn
from server.protocol.answers import Scored


def job_attributes(job: Job, index: int) -> dict[str, Any]:
    """Return the attributes of a candidate that is to be drawn."""
    return {
        "infalign.index": index,
        "infalign.procedure": str(job.procedure),
        "infalign.n": job.draws,
        "gen_ai.operation.name": "chat" if job.conversation.messages else "text_completion",
        "gen_ai.provider.name": "infalign",
        "gen_ai.request.model": job.sampling.policy,
    }


def turn_attributes(prompt: Prompt, sampling: Sampling, turn: Turn) -> dict[str, Any]:
    """Return the attributes of a candidate that is drawn."""
    return {
        "gen_ai.request.temperature": sampling.temperature,
        "gen_ai.request.top_p": sampling.top_p,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.seed": sampling.seed,
        "gen_ai.response.finish_reasons": [turn.finish_reason],
        "gen_ai.usage.input_tokens": len(prompt.tokens),
        "gen_ai.usage.output_tokens": turn.completion.tokens,
    }


def score_attributes(placement: Scored) -> dict[str, Any]:
    """Return the attributes of a candidate that is scored."""
    return {"infalign.reward": placement.reward, "infalign.quantile": placement.quantile}
