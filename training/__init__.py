"""Offline training of policies for inference-time decoding, by CTRL (InfAlign, arXiv 2412.19792).

``infalign train`` goes through the stages in :mod:`training.stages`, which :mod:`training.pipeline` runs and
:mod:`training.runner` caches. These words mean the same everywhere:

Reference:
    The model that the policy is aligned from, and that it is compared with. The stage ``sft`` makes it.
Policy:
    The model that a run produces. The stage ``ctrl`` trains it.
Decoding procedure:
    How a response is chosen when the policy is served: one draw (``standard``), the best or the worst of n draws.
Reward:
    A number that says how good a response is. A reward model gives it, and higher is better.
Rollouts:
    K scored responses of the reference to every prompt. The stage ``rollouts`` draws them.
Quantile:
    The share of the reference's responses to a prompt whose reward is lower: a number from 0 to 1. It is written C.
Calibration:
    Tables of the rollouts' rewards by prompt, which turn a reward into a quantile.
Transformation:
    A function Φ of the quantile. The policy maximises E[Φ(C)] − β KL, where KL is its divergence from the reference
    and β the price of a nat of it. The right Φ depends on the decoding procedure.
Settling:
    The last step of ``ctrl``: the policy is moved towards or away from the reference until its KL is the target.
"""
