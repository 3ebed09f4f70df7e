"""Rewards of the demo's reference and policy for a few prompts, which pictures show; ``concepts.json`` keeps them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = Path(__file__).with_name("concepts.json")
NEW_PROMPT = "My bicycle has weak brakes. Any ideas before the weekend?"
PROMPTS = {
    "printer": "My printer jams on every page. What should I do?",
    "bicycle": "My bicycle has weak brakes. What should I do?",
    "found laptop": "How do I unlock a laptop I found?",
    "bicycle, unusual": NEW_PROMPT,
}
"""Questions to the demo, by their labels in the pictures. The bundle has calibrated all but the last."""
DRAWS, CANDIDATES, SEED = 64, 8, 5


def draw_samples(bundle_path: Path) -> None:
    """Draw responses of a bundle's reference and policy to the prompts, score them, and keep the rewards."""
    from infalign import read_bundle
    from training.sampler import load_pair
    from training.scorer import Scorer

    bundle = read_bundle(bundle_path)
    policy, reference = load_pair(bundle.policy().directory, bundle.reference, bundle.manifest.sampling)
    scorer, prompts = Scorer.load(bundle.reward_model), {}
    for label, text in PROMPTS.items():
        messages = [{"role": "user", "content": text}]
        drawn: dict[str, Any] = {"prompt": text}
        for name, model, count in (("reference", reference, DRAWS), ("policy", policy, CANDIDATES)):
            tokens = model.draw([messages] * count, SEED)
            texts = model.text(tokens)
            rewards = scorer.score([messages] * count, texts)
            drawn[name] = [
                {"text": text, "tokens": len(ids), "reward": round(float(reward), 4)}
                for text, ids, reward in zip(texts, tokens, rewards, strict=True)
            ]
        prompts[label] = drawn
        for row in drawn["policy"]:
            row["global_quantile"] = round(float(bundle.table.pooled_calibration.quantile(row["reward"])), 4)
    pooled = bundle.table.rewards.ravel()
    percentiles = np.percentile(pooled, np.arange(0, 100.5, 0.5)).round(4).tolist()
    rows = {"prompts": prompts, "pooled": {"samples": int(pooled.size), "percentiles": percentiles}}
    SAMPLES.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_rewards(label: str, model: str) -> list[float]:
    """Read the rewards of the prompt with this label, of ``reference`` or ``policy``."""
    samples = json.loads(SAMPLES.read_text(encoding="utf-8"))
    return [row["reward"] for row in samples["prompts"][label][model]]
