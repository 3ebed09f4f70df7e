import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from infalign import (
    Alignment,
    BundleError,
    CalibrationTable,
    Combination,
    JudgeRecord,
    NewPolicy,
    join_bundles,
    read_bundle,
    write_bundle,
)
from infalign.bundle import SHARED_PARTS, check_joinable
from infalign.bundling import rewrite_bundle
from infalign.errors import BundleCorrupt, BundleMismatch, BundleMissing, BundleUnsafe, InvalidValue
from infalign.files import context_length, directory_digest, hash_files, reward_models
from infalign.manifest import CalibrationRecord, RewardRecord, SamplingLaw
from infalign.reproduction import EXAMPLES, save_examples
from infalign.storage import load_calibration, save_calibration
from tests.bundles import ALIGNED, LAW, example, parts, write


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    target = tmp_path / "bundles" / "demo"
    write(target, parts(tmp_path / "parts"))
    return target


def test_what_is_written_is_read(bundle: Path) -> None:
    found = read_bundle(bundle)
    policy = found.policy()
    assert (policy.name, policy.record.procedure, policy.is_adapter) == ("demo", "best-of-4", False)
    assert policy.directory == bundle / "policy"
    assert (policy.evaluation / "config.json").is_file()
    with pytest.raises(InvalidValue, match="policy: got 'other', accepted: demo"):
        found.policy("other")
    assert found.table.keys == ("ab" * 16, "cd" * 16)
    assert found.table.lookup("ab" * 16).samples == 3
    assert np.array_equal(found.table.rewards, [[1.0, 2.0, 3.0], [0.0, 4.0, 5.0]])


@pytest.mark.parametrize(
    "config",
    [{"max_position_embeddings": 512}, {"n_positions": 512}, {"text_config": {"max_position_embeddings": 512}}],
)
def test_the_context_of_a_model_is_read_whatever_it_is_called(tmp_path: Path, config: dict[str, object]) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    assert context_length(tmp_path) == 512
    file.write_text("{}")
    with pytest.raises(BundleCorrupt, match=r"config\.json: does not say how many tokens the model can read"):
        context_length(tmp_path)


def test_a_policy_may_be_the_reference_itself(tmp_path: Path) -> None:
    weights = tmp_path / "parts" / "reference" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"gigabytes")
    sources = parts(tmp_path / "parts")
    found = write_bundle(
        tmp_path / "bundle",
        {part: sources[part] for part in SHARED_PARTS},
        {"plain": NewPolicy()},
        "# A card",
        name="plain",
        created="2026-01-01",
        sampling=load_calibration(sources["calibration"])[1].sampling,
        libraries={},
    )
    policy = found.policy()
    assert (policy.is_reference, policy.is_adapter, policy.directory) == (True, False, found.reference)
    assert (policy.record.procedure, policy.record.transformation, policy.record.beta) == ("standard", None, None)
    assert weights.samefile(found.reference / "model.safetensors"), "weights are linked"
    assert not (sources["reference"] / "config.json").samefile(found.reference / "config.json"), "the rest is copied"
    with pytest.raises(BundleMismatch, match="the policy plain is a whole model"):
        check_joinable(found, found)


def test_half_an_alignment_is_refused() -> None:
    with pytest.raises(ValueError, match="give transformation and beta, or neither"):
        Alignment(transformation="identity", measured={})


def test_scored_responses_are_read_as_written(bundle: Path) -> None:
    found = read_bundle(bundle)
    assert found.examples == (example("reward"),)
    assert found.reproductions["reward"].rewards == [0.1]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (None, BundleMissing, "is missing"),
        ("", BundleMismatch, "line 1: not a scored response"),
        ("{}\n", BundleMismatch, "line 1: not a scored response"),
        (example("other").model_dump_json(), BundleMismatch, "line 1: scored by other, the calibration by reward"),
        (example().model_dump_json(), BundleMismatch, "line 1: scored by no model, the calibration by reward"),
    ],
)
def test_a_bundle_whose_reward_models_cannot_be_checked_is_never_written(
    tmp_path: Path, text: str | None, error: type[BundleError], message: str
) -> None:
    sources = parts(tmp_path / "parts")
    file = sources["calibration"] / EXAMPLES
    file.unlink()
    if text is not None:
        file.write_text(text)
    with pytest.raises(error, match=message):
        write(tmp_path / "demo", sources)


def test_every_changed_byte_is_noticed_by_name(bundle: Path) -> None:
    for name in hash_files(bundle):
        path = bundle / name
        original = path.read_bytes()
        path.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
        with pytest.raises(BundleCorrupt, match=name):
            read_bundle(bundle)
        path.write_bytes(original)
    read_bundle(bundle)


def test_every_missing_file_is_noticed_by_name(bundle: Path) -> None:
    for name in hash_files(bundle):
        path = bundle / name
        original = path.read_bytes()
        path.unlink()
        with pytest.raises(BundleMissing, match=name):
            read_bundle(bundle)
        path.write_bytes(original)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "adapter.pt", "state.pkl"])
def test_pickled_weights_are_refused(tmp_path: Path, name: str) -> None:
    sources = parts(tmp_path / "parts")
    (sources["policy"] / name).write_text("x")
    with pytest.raises(BundleUnsafe, match=f"policy/{name} is a pickle, accepted: weights in safetensors"):
        write(tmp_path / "bundle", sources)


def test_an_added_file_is_noticed(bundle: Path) -> None:
    (bundle / "policy" / "extra.bin").write_text("x")
    with pytest.raises(BundleCorrupt, match=r"policy/extra\.bin was not written"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"format": 99}, "format 99, this version reads 3"),
        ({"policies": {}}, "name is demo, which is none of the policies"),
        ({"policies": {"demo": ALIGNED | {"digest": "0", "path": "../x"}}}, "policies.demo.path"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(bundle: Path, change: dict[str, object], error: str) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text()) | change
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleMismatch, match=error):
        read_bundle(bundle)


def test_no_bundle_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(BundleMissing, match="no bundle here") as caught:
        read_bundle(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_calibration_of_another_reward_model_is_never_written(tmp_path: Path) -> None:
    sources = parts(tmp_path / "one")
    parts(tmp_path / "two", reward="another")
    sources["reward"] = tmp_path / "two" / "reward"
    with pytest.raises(BundleMismatch, match="made for another reward model"):
        write(tmp_path / "demo", sources)
    assert not (tmp_path / "demo").exists()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_another_template_or_law_is_refused(tmp_path: Path) -> None:
    sources = parts(tmp_path / "parts")
    with pytest.raises(BundleMismatch, match="sampling law"):
        write(tmp_path / "demo", sources, sampling=SamplingLaw(max_tokens=17))
    (sources["policy"] / "chat_template.jinja").write_text("bye")
    with pytest.raises(BundleMismatch, match="chat template than policy"):
        write(tmp_path / "demo", sources)


def test_a_failed_write_leaves_the_old_bundle(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        write(bundle, parts(tmp_path / "parts"), sampling=SamplingLaw(max_tokens=17))
    assert read_bundle(bundle).manifest.name == "demo"


def test_a_new_bundle_replaces_the_old(bundle: Path, tmp_path: Path) -> None:
    write(bundle, parts(tmp_path / "parts"), name="second")
    assert read_bundle(bundle).manifest.name == "second"
    assert [path.name for path in bundle.parent.iterdir()] == ["demo"]


def adapters(tmp_path: Path, *names: str) -> list[Path]:
    """Bundles of one adapter each, on one reference."""
    sources = parts(tmp_path / "parts")
    for name in names:
        write(tmp_path / name, sources, adapter=True, name=name)
    return [tmp_path / name for name in names]


def test_adapters_on_one_reference_are_joined(tmp_path: Path) -> None:
    bundles = [read_bundle(path) for path in adapters(tmp_path, "best", "worst")]
    assert not (bundles[0].path / "policy").exists()
    joined = read_bundle(join_bundles(bundles, tmp_path / "both").path)
    assert list(joined.policies) == ["best", "worst"]
    assert joined.policy().name == "best"
    assert joined.policy("worst").directory == tmp_path / "both" / "adapters" / "worst"
    assert joined.policy("worst").record.measured == bundles[1].policy().record.measured
    card = (joined.path / "README.md").read_text()
    assert "| [worst](evaluation/worst) | best-of-4 | exp(10) | 0.500 | 0.800 |" in card
    with pytest.raises(BundleMismatch, match="another bundle has a policy best too"):
        join_bundles([joined, bundles[0]], tmp_path / "again")


def test_what_does_not_belong_together_is_not_joined(tmp_path: Path) -> None:
    [one] = adapters(tmp_path, "one")
    write(tmp_path / "whole", parts(tmp_path / "parts"), name="whole")
    write(tmp_path / "other", parts(tmp_path / "others", reward="another"), adapter=True, name="other")
    with pytest.raises(BundleMismatch, match="the policy whole is a whole model"):
        join_bundles([read_bundle(one), read_bundle(tmp_path / "whole")], tmp_path / "both")
    with pytest.raises(BundleMismatch, match="its reward_model is not that of"):
        join_bundles([read_bundle(one), read_bundle(tmp_path / "other")], tmp_path / "both")
    assert not (tmp_path / "both").exists()


def several(root: Path) -> dict[str, Path]:
    """The same parts with two reward models and a calibration by both."""
    sources = parts(root)
    shutil.rmtree(root / "reward")
    for name in ("harm", "helpful"):
        (root / "reward" / name).mkdir(parents=True)
        (root / "reward" / name / "config.json").write_text(name)
    _, record = load_calibration(root / "calibration")
    tables = [CalibrationTable(("ab" * 16,), np.array([row])) for row in ([3.0, 1.0, 2.0], [0.0, 5.0, 4.0])]
    named = {
        name: RewardRecord(digest=directory_digest(root / "reward" / name), weight=weight)
        for name, weight in (("helpful", 1.0), ("harm", 2.0))
    }
    made = {"reward_model": directory_digest(root / "reward"), "reward_models": named, "prompts": 1}
    save_calibration(
        root / "calibration", Combination(tuple(tables), (2.0, 1.0)), CalibrationRecord(**dict(record) | made)
    )
    save_examples(root / "calibration", [example("harm", "helpful")])
    return sources


def test_several_reward_models_are_read_in_step(tmp_path: Path) -> None:
    write(tmp_path / "demo", several(tmp_path / "parts"))
    found = read_bundle(tmp_path / "demo")
    assert list(reward_models(found.reward_model)) == ["harm", "helpful"]
    assert found.combination.weights == (2.0, 1.0)
    first, second = found.combination.tables
    assert np.array_equal(first.rewards, [[3.0, 1.0, 2.0]])  # as drawn: column k is the same response in both
    assert np.array_equal(second.rewards, [[0.0, 5.0, 4.0]])
    assert found.table.rewards[0] * 18 == pytest.approx([2 * 5 + 1, 2 * 1 + 5, 2 * 3 + 3])


def test_a_single_reward_model_is_recorded_as_ever(bundle: Path) -> None:
    assert "reward_models" not in json.loads((bundle / "calibration" / "calibration.json").read_text())
    found = read_bundle(bundle)
    assert reward_models(found.reward_model) == {"reward": bundle / "reward"}
    assert found.table is found.combination.tables[0]


def test_a_reward_model_that_the_calibration_does_not_know_is_named(tmp_path: Path) -> None:
    sources = several(tmp_path / "parts")
    (sources["reward"] / "harm" / "config.json").write_text("another")
    with pytest.raises(BundleMismatch, match="made for another reward model harm"):
        write(tmp_path / "demo", sources)
    shutil.rmtree(sources["reward"] / "harm")
    with pytest.raises(BundleMismatch, match="made for another reward model harm"):
        write(tmp_path / "demo", sources)


def test_rewards_of_other_models_than_the_record_names_are_refused(tmp_path: Path) -> None:
    sources = several(tmp_path / "parts")
    record = sources["calibration"] / "calibration.json"
    record.write_text(record.read_text().replace('"harm"', '"other"'))
    with pytest.raises(BundleMismatch, match=r"holds .*rewards/harm.* calibration.json says .*rewards/other"):
        write(tmp_path / "demo", sources)


def test_a_calibration_by_one_of_several_is_refused(tmp_path: Path) -> None:
    sources = several(tmp_path / "parts")
    combination, record = load_calibration(sources["calibration"])
    alone = record.model_copy(update={"reward_models": None})
    save_calibration(sources["calibration"], Combination(combination.tables[:1]), alone)
    with pytest.raises(BundleMismatch, match=r"made by reward, reward/ holds harm, helpful"):
        write(tmp_path / "demo", sources)


def test_adapters_with_the_same_reward_models_are_joined(tmp_path: Path) -> None:
    sources = several(tmp_path / "parts")
    for name in ("best", "worst"):
        write(tmp_path / name, sources, adapter=True, name=name)
    joined = join_bundles([read_bundle(tmp_path / name) for name in ("best", "worst")], tmp_path / "both")
    assert joined.combination.weights == (2.0, 1.0)
    assert list(reward_models(joined.reward_model)) == ["harm", "helpful"]


def test_the_record_of_a_judge_is_kept(tmp_path: Path) -> None:
    sources = parts(tmp_path / "parts")
    rewards = np.random.default_rng(0).normal(size=(20, 8))
    record = JudgeRecord.find("classifier", rewards, rewards)
    alignment = Alignment(**ALIGNED, judged=record)
    policies = {"demo": NewPolicy(sources["policy"], sources["evaluation"], alignment=alignment)}
    written = write_bundle(
        tmp_path / "judged",
        {part: sources[part] for part in SHARED_PARTS},
        policies,
        "# card\n",
        name="demo",
        created="2026-01-01T00:00:00+00:00",
        sampling=LAW,
        libraries={},
    )
    for bundle in (written, read_bundle(tmp_path / "judged"), rewrite_bundle(written, tmp_path / "again")):
        judged = bundle.policy().record.judged
        assert judged == record
        assert judged.support["best-of-n"].scores[8].value == pytest.approx(rewards.max(axis=1).mean())


def test_a_bundle_without_a_judge_has_no_record(bundle: Path) -> None:
    assert read_bundle(bundle).policy().record.judged is None
    assert "judged" not in (bundle / "bundle.json").read_text()
