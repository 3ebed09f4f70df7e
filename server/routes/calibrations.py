"""``/v1/calibrations``: calibrates a prompt before it is decoded."""

import numpy as np
from fastapi import APIRouter, Request

from infalign.procedures import Standard
from server.protocol.answers import CalibrationAnswer
from server.protocol.requests import CalibrationRequest
from server.routes.dependencies import require_role
from server.routes.disconnects import run_while_connected
from server.routes.jobs import make_conversation
from server.routes.serving import ServingDep

router = APIRouter(prefix="/v1", tags=["decoding"], dependencies=[require_role("generate")])
PERCENTILES = (5, 25, 50, 75, 95)
"""Percentiles of the reference rewards that the answer reports."""


@router.post("/calibrations", summary="Calibrate a prompt now")
async def calibrate(body: CalibrationRequest, request: Request, serving: ServingDep) -> CalibrationAnswer:
    """Draw K responses to the prompt from the reference, score them, and keep their rewards.

    A prompt that is calibrated already is not drawn again.
    """
    model = serving.catalogue.choose(body.model, Standard()).policy
    conversation = make_conversation(serving, body)
    references = await run_while_connected(request, serving.run(lambda: serving.decoder.calibrate(conversation)))
    calibrations = {
        name: references.combination.tables[i].lookup(references.key)
        for i, name in enumerate(serving.decoder.client.reward_models)
    }
    return CalibrationAnswer(
        model=model,
        prompt_key=references.key,
        scope=references.calibration.scope,
        samples=references.calibration.samples,
        cached=references.source != "drawn",
        reference_rewards={
            name: {
                str(percent): float(reward * of.resolution)
                for percent, reward in zip(PERCENTILES, np.percentile(of.anchors, PERCENTILES), strict=True)
            }
            for name, of in calibrations.items()
        },
    )
