"""The prefix scorer of a bundle: what is written is read, and one that was made for other parts is refused."""

from pathlib import Path

import numpy as np
import pytest

from infalign import Bundle, InvalidValue, PrefixScorer, read_bundle, write_bundle
from infalign.bundle import SCORER, SHARED_PARTS
from infalign.bundling import NewPolicy, rewrite_bundle
from infalign.calibration import equivalent_anchors
from infalign.combination import Combination
from infalign.errors import BundleCorrupt, BundleMismatch, BundleMissing
from infalign.files import MANIFEST, directory_digest
from infalign.manifest import ScorerRecord
from infalign.prefix_scorer import load_scorer, save_scorer
from infalign.reproduction import save_examples
from infalign.storage import save_calibration
from infalign.table import CalibrationTable
from tests.bundles import LAW, TEMPLATE_SHA, example, parts

EDGES = (-1.0, 0.0, 1.0, 4.0, 9.0)


def record(sources: dict[str, Path], **changes: object) -> ScorerRecord:
    fields = {
        "reference": directory_digest(sources["reference"]),
        "reward_model": directory_digest(sources["reward"]),
        "calibration": directory_digest(sources["calibration"]),
        "chat_template": TEMPLATE_SHA,
        "trunk": "reward",
        "edges": EDGES,
        "checkpoint": 8,
        "limit": 0.002,
        "rejection": {
            "best-of-4": dict.fromkeys(("threshold", "loss", "loss_low", "loss_high"), 0.001)
            | dict.fromkeys(("saved", "saved_low", "saved_high"), 0.3)
        },
        "shares": {"best-of-n": dict.fromkeys(("share", "tokens", "tokens_low", "tokens_high"), 0.5)},
        "measured": {"r2_half": 0.4},
    }
    return ScorerRecord.model_validate(fields | changes)


def make(root: Path, **changes: object) -> Bundle:
    sources = parts(root / "parts")
    scorer = root / "parts" / SCORER
    scorer.mkdir()
    (scorer / "model.safetensors").write_bytes(b"weights")
    save_scorer(scorer, record(sources, **changes))
    shared = {part: sources[part] for part in SHARED_PARTS} | {SCORER: scorer}
    fields = {"name": "demo", "created": "2026-01-01", "sampling": LAW, "libraries": {}}
    return write_bundle(root / "bundle", shared, {"demo": NewPolicy()}, "# card", **fields)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    bundle = read_bundle(make(tmp_path).path)
    assert bundle.scorer
    assert bundle.scorer.rejection["best-of-4"].saved == 0.3
    assert bundle.manifest.scorer
    assert bundle.manifest.scorer.measured == {"r2_half": 0.4}
    assert load_scorer(bundle.prefix_scorer)[0].bins == 4


def test_a_bundle_without_one_does_not_mention_it(tmp_path: Path) -> None:
    sources = parts(tmp_path / "parts")
    fields = {"name": "demo", "created": "2026-01-01", "sampling": LAW, "libraries": {}}
    shared = {part: sources[part] for part in SHARED_PARTS}
    bundle = write_bundle(tmp_path / "bundle", shared, {"demo": NewPolicy()}, "# card", **fields)
    assert bundle.scorer is None
    assert "scorer" not in (bundle.path / MANIFEST).read_text()


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("reference", "another reference"),
        ("reward_model", "another reward model"),
        ("calibration", "another calibration"),
        ("chat_template", "another chat template"),
    ],
)
def test_a_scorer_for_other_parts_is_refused_by_name(tmp_path: Path, part: str, words: str) -> None:
    with pytest.raises(BundleMismatch, match=f"the scorer was made for {words} \\(0123"):
        make(tmp_path, **{part: "0123"})
    assert not (tmp_path / "bundle").exists()


def test_a_changed_scorer_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path).path
    (path / SCORER / "scorer.json").write_text("{}")
    with pytest.raises(BundleCorrupt, match=r"scorer\.json has changed"):
        read_bundle(path)


def test_a_scorer_without_its_entry_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path).path
    manifest = path / MANIFEST
    text = manifest.read_text()
    start = text.index('  "scorer": {')
    manifest.write_text(text[:start] + text[text.index('  "origins"') :])
    with pytest.raises(BundleMissing, match="scorer/ is not in the manifest"):
        read_bundle(path)


def test_a_record_with_edges_in_no_order_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path).prefix_scorer / "scorer.json"
    path.write_text(path.read_text().replace("-1.0", "5.0"))
    with pytest.raises(BundleMismatch, match="edges must be in increasing order"):
        load_scorer(path.parent)


def test_more_calibrated_prompts_keep_the_scorer(tmp_path: Path) -> None:
    bundle = make(tmp_path)
    more = CalibrationTable((*bundle.table.keys, "ef" * 16), np.vstack([bundle.table.rewards, [[7.0, 8.0, 9.0]]]))
    calibration = tmp_path / "more"
    save_calibration(calibration, Combination((more,)), bundle.calibration.model_copy(update={"prompts": 3}))
    save_examples(calibration, [example("reward")])
    found = rewrite_bundle(bundle, calibration=calibration)
    assert found.scorer == bundle.scorer.model_copy(update={"calibration": found.manifest.calibration})
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_outputs_of_the_classifier_are_two_laws() -> None:
    scorer = PrefixScorer(np.array(EDGES))
    outputs = np.random.default_rng(0).normal(size=(2, 8))
    assert np.allclose(scorer.quantile_law(outputs).probabilities[1], scorer.quantile_law(outputs[1]).probabilities)
    assert np.allclose(
        scorer.reward_law(outputs).probabilities, np.exp(outputs[:, 4:]) / np.exp(outputs[:, 4:]).sum(1, keepdims=True)
    )
    quantiles = scorer.predicted_quantile(outputs[0], [-5.0, *EDGES, 20.0])
    assert np.all(np.diff(quantiles) >= 0)
    assert quantiles[0] == 0
    assert quantiles[-1] == pytest.approx(1)
    assert np.allclose(np.diff(quantiles[1:-1]), scorer.reward_law(outputs[0]).probabilities)


def test_a_predicted_calibration_is_that_of_the_predicted_law() -> None:
    scorer, outputs = PrefixScorer(np.array(EDGES)), np.random.default_rng(0).normal(size=8)
    calibration = scorer.calibration(outputs, 500)
    assert (calibration.scope, calibration.samples) == ("predicted", 500)
    rewards = np.linspace(-2, 10, 50)
    assert calibration.quantile(rewards) == pytest.approx(scorer.predicted_quantile(outputs, rewards), abs=0.003)
    with pytest.raises(InvalidValue, match="samples: got 0"):
        scorer.calibration(outputs, 0)


@pytest.mark.parametrize("exactness", [28, 100])
def test_intervals_of_a_prediction_as_exact_as_its_anchors_cover(exactness: int) -> None:
    """The rewards are uniform on [0, 8]; what is predicted has the error of the histogram of some draws."""
    random = np.random.default_rng(0)
    scorer, hits = PrefixScorer(np.arange(9.0)), []
    for counts in random.multinomial(exactness, np.full(8, 1 / 8), size=400):
        quantiles = random.uniform(0, 1, 50)
        outputs = np.concatenate([np.zeros(8), np.log(counts + 1e-9)])
        low, high = scorer.calibration(outputs, exactness).interval(8 * quantiles)
        hits.append(np.mean((low <= quantiles) & (quantiles <= high)))
    assert 0.94 < np.mean(hits) < 0.98  # within a bin, a histogram is more exact than at its edges


def test_the_exactness_of_predictions_follows_from_the_upper_end_of_their_error(tmp_path: Path) -> None:
    sources = parts(tmp_path)
    assert record(sources, measured={"calibration_predicted": 0.149}).anchors == 33
    measured = {"calibration_predicted": 0.149, "calibration_predicted_high": 0.164}
    assert record(sources, measured=measured).anchors == 28
    with pytest.raises(InvalidValue, match="distance"):
        equivalent_anchors(0.0)
    anchors = np.random.default_rng(0).uniform(size=(2000, 33))
    ranks = (np.arange(33) + 0.5) / 33
    distance = np.mean(np.max(np.abs(np.sort(anchors) - ranks), axis=1) + 0.5 / 33)
    assert equivalent_anchors(distance) == pytest.approx(33, abs=5)


def test_outputs_of_another_model_are_refused() -> None:
    with pytest.raises(InvalidValue, match="8\\) outputs for 4 bins"):
        PrefixScorer(np.array(EDGES)).quantile_law(np.zeros(4))
    with pytest.raises(InvalidValue, match="edges"):
        PrefixScorer(np.array([1.0, 0.0, 2.0]))
