"""``/v1/session``: what the caller may do here, and what is served. The playground starts with it."""

import asyncio

from fastapi import APIRouter

from infalign.procedures import BestOfN, WorstOfN
from server.decoding.calibrator import calibration_digest
from server.decoding.catalogue import Choice
from server.protocol.session import SessionAnswer, SessionModel
from server.routes.cards import describe_bundle, describe_policy
from server.routes.dependencies import CallerDep
from server.routes.serving import Serving, ServingDep
from server.routes.story import read_prompts

router = APIRouter(prefix="/v1", tags=["operations"])


@router.get("/session", response_model_exclude_none=True)
async def session(caller: CallerDep, serving: ServingDep) -> SessionAnswer:
    """Say who the caller is, which roles the key has, and what is served.

    The page at `/` reads it. What describes the bundle is for callers with the role generate, and texts of the bundle
    are for callers with the role admin.
    """
    is_user, is_admin = caller.has_role("generate"), caller.has_role("admin")
    models = await asyncio.to_thread(_describe_models, serving, is_user)
    bundle = serving.adapters.bundle
    return SessionAnswer(
        caller=caller.name,
        roles=sorted(caller.roles),
        max_n=serving.settings.max_n,
        max_requests=serving.settings.max_requests,
        calibration=calibration_digest(bundle.calibration),
        models=models,
        bundle=describe_bundle(bundle, serving.decoder.prefixes is not None) if is_user else None,
        story=serving.story.without_text if is_user and not is_admin else serving.story if is_user else None,
        prompts=read_prompts(bundle) if is_admin else None,
    )


def _describe_models(serving: Serving, shows_cards: bool) -> list[SessionModel]:
    """Describe the policies. This runs in a thread, as the curves of their cards take long at first."""
    return [
        SessionModel(
            id=name,
            digest=policy.record.digest if policy else serving.adapters.bundle.calibration.reference,
            procedure=serving.catalogue.procedure(name),
            max_n={kind.family: serving.largest_n(Choice(name, kind())) for kind in (BestOfN, WorstOfN)},
            card=describe_policy(policy) if shows_cards and policy else None,
        )
        for name in serving.catalogue.policies
        for policy in (serving.adapters.policies.get(name),)
    ]
