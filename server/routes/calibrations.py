"""``/v1/calibrations``: calibrate a prompt before it is decoded."""

import numpy as np
from fastapi import APIRouter, Request

from infalign.procedures import Standard
from server.auth import needs
from server.protocol.answers import CalibrationAnswer
from server.protocol.requests import CalibrationRequest
from server.routes.common import Server, conversation, while_connected

router = APIRouter(prefix="/v1", tags=["decoding"], dependencies=[needs("generate")])
PERCENTILES = (5, 25, 50, 75, 95)


@router.post("/calibrations", summary="Calibrate a prompt now")
async def calibrate(body: CalibrationRequest, request: Request, server: Server) -> CalibrationAnswer:
    """Draw K responses to the prompt from the reference and keep their rewards, where there are none yet."""
    model = server.catalogue.choose(body.model, Standard()).policy
    asked = conversation(body.messages, body.prompt)
    found = await while_connected(request, server.bounded(lambda: server.decoder.calibrate(asked)))
    raw = {
        name: found.combination.tables[i].lookup(found.key)
        for i, name in enumerate(server.decoder.sampler.reward_models)
    }
    return CalibrationAnswer(
        model=model,
        prompt_key=found.key,
        scope=found.calibration.scope,
        samples=found.calibration.samples,
        cached=found.source != "drawn",
        reference_rewards={
            name: {
                str(percent): float(reward * of.resolution)
                for percent, reward in zip(PERCENTILES, np.percentile(of.anchors, PERCENTILES), strict=True)
            }
            for name, of in raw.items()
        },
    )
