"""Creates the fields of an answer from the result of decoding."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import Response
from pydantic import BaseModel

from infalign.calibration import Calibration
from infalign.controlled import Controlled, ServedProcedure
from server.access.disclosure import upper_half
from server.decoding.jobs import DecodingResult, Job
from server.observability.account import note_selected
from server.protocol.answers import CalibrationInfo, Candidate, Control, EarlyRejection, Missing, Usage
from server.protocol.requests import GenerationRequest

T = TypeVar("T")
WARNING = "X-InfAlign-Warning"
"""Header with the messages of all warnings."""
SHORT_ENTRIES = 1000
"""Answers with at most so many log-probabilities are written on the event loop. That takes a few milliseconds."""


def select_candidates(job: Job, result: DecodingResult) -> list[Candidate]:
    """Select the candidates that the client gets, and note their texts for the log.

    These are as many as the client asked for. Without the role ``probe``, none is from the lower half of those that
    were drawn in time. With early rejection it is one, the best of those that were not rejected.
    """
    candidates = result.candidates
    count = job.top if job.sees_all else min(job.top, upper_half(len(candidates)))
    note_selected([candidate.text for candidate in candidates[:count]])
    return candidates[:count]


def calibration_info(calibration: Calibration) -> CalibrationInfo:
    """Return the scope and the size of a calibration."""
    return CalibrationInfo(scope=calibration.scope, samples=calibration.samples)


def rejection_info(result: DecodingResult) -> EarlyRejection | None:
    """Return what was not drawn to the end; None without early rejection."""
    if (rejections := result.rejections) is None:
        return None
    return EarlyRejection(
        rejected=len(rejections.rejected),
        aborted=len(rejections.aborted) if result.stopping else None,
        tokens=rejections.tokens,
        unread=rejections.unread or None,
    )


def usage(result: DecodingResult) -> Usage:
    """Return the token counts: the prompt once, and everything that was drawn, also what was rejected."""
    completion_tokens = result.completion_tokens
    return Usage(
        prompt_tokens=result.prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=result.prompt_tokens + completion_tokens,
    )


def extension_fields(body: GenerationRequest, job: Job, result: DecodingResult) -> dict[str, Any]:
    """Return the fields that OpenAI's answers do not have, except the selected candidates."""
    return {
        "procedure": str(job.procedure),
        "calibration": calibration_info(result.calibration),
        "stopping": result.stopping,
        "controlled": _control(job.procedure, job.sampling.greedy, result),
        "rejection": rejection_info(result),
        "candidates": result.by_index if body.return_candidates else None,
        "missing": Missing(asked=job.draws, reasons=result.failures) if result.failures else None,
        "warnings": job.warnings or None,
        # Greedy sampling makes all candidates the same.
        "greedy": True if job.sampling.greedy and _has_choice(job) else None,
    }


def _has_choice(job: Job) -> bool:
    return job.draws > 1 or (isinstance(job.procedure, Controlled) and job.procedure.k > 1)


def _control(procedure: ServedProcedure, greedy: bool, result: DecodingResult) -> Control | None:
    """Describe controlled decoding. All blocks but the last of an answer are full, so its length says how many."""
    if not isinstance(procedure, Controlled):
        return None
    used = replace(procedure, k=1) if greedy else procedure
    blocks = sum(used.blocks(candidate.completion_tokens) for candidate in result.candidates)
    return Control(
        k=used.k,
        block=used.block,
        blocks=blocks,
        drawn_tokens=result.completion_tokens,
        discarded_tokens=result.completion_tokens - result.candidate_tokens,
        kl_bound=used.kl_bound(blocks / len(result.candidates)),
    )


async def render(result: DecodingResult, work: Callable[[], T]) -> T:
    """Call ``work``, which writes the answer. It runs in a thread if log-probabilities make it long.

    Args:
        result: The result of decoding.
        work: Writes the answer.
    """
    entries = sum(1 + len(token.top) for candidate in result.candidates for token in candidate.logprobs or ())
    return await asyncio.to_thread(work) if entries > SHORT_ENTRIES else work()


def warning_headers(job: Job) -> dict[str, str]:
    """Return the headers for the warnings, which clients see whose library drops fields that it does not know."""
    return {WARNING: "; ".join(warning.message for warning in job.warnings)} if job.warnings else {}


def json_answer(answer: BaseModel, headers: Mapping[str, str] | None = None) -> Response:
    """Return a JSON response. Fields that are None are left out."""
    return Response(answer.model_dump_json(exclude_none=True), headers=headers, media_type="application/json")
