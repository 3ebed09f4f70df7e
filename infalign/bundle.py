"""The bundle: the directory that training writes and the server reads.

bundle.json               who made what, and the SHA-256 of every other file
reference/                a Hugging Face causal LM (safetensors, tokenizer, chat template)
policy/                   the policy as a whole model; or, for several policies on one reference,
adapters/NAME/            a PEFT adapter for each; neither of the two if the policy is the reference itself
reward/                   an AutoModelForSequenceClassification with one label, or one for each score of a judge; or
                          reward.json, which names a function, a service or a judge's server, or says how the reference
                          judges; or, for several rewards,
reward/NAME/              one for each
calibration/              references.safetensors (prompt keys, reference rewards of each model), calibration.json, and
                          examples.jsonl: a few responses with the raw reward of each model, to check models by
scorer/                   the prefix scorer, if any: an AutoModelForSequenceClassification, two outputs a bin;
                          scorer.json, how it was made; figures.json, how sharp it is
evaluation/NAME/          the test prompts of each aligned policy, and the figures that were measured on them, if any
README.md                 the model card

Reading a bundle verifies every hash, checks that the parts were made for each other, and refuses with a message that
names the file. Bundles have no pickles. :mod:`infalign.bundling` writes bundles.
"""

from dataclasses import dataclass
from pathlib import Path

from infalign.combination import Combination
from infalign.errors import BundleCorrupt, BundleMismatch, BundleMissing, BundleUnsafe, InvalidValue
from infalign.files import MANIFEST, digest, hash_file, hash_files, read_json, read_record, reward_models
from infalign.manifest import CalibrationRecord, Manifest, PolicyRecord, ScorerRecord
from infalign.prefix_scorer import load_scorer
from infalign.reproduction import Reproduction, RewardExample, load_examples
from infalign.storage import load_calibration
from infalign.table import CalibrationTable

FORMAT = 3
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
SHARED_PARTS = ("reference", "reward", "calibration")
"""Parts that every policy of a bundle has in common."""
SCORER = "scorer"
"""Directory of the prefix scorer, which a bundle may have."""
WHOLE_POLICY, REFERENCE = "policy", "reference"
"""Directories of a policy that is a whole model of its own, and of one that is the reference itself."""


@dataclass(frozen=True)
class BundledPolicy:
    """One policy of a bundle on disk.

    Args:
        name: The model name that the server answers to.
        bundle: Directory of the bundle.
        record: The policy's entry in the manifest.
    """

    name: str
    bundle: Path
    record: PolicyRecord

    @property
    def directory(self) -> Path:
        """Directory of the whole model, or of the adapter on the reference."""
        return self.bundle / self.record.path

    @property
    def is_adapter(self) -> bool:
        """True if the policy is an adapter on the reference."""
        return self.record.path not in (WHOLE_POLICY, REFERENCE)

    @property
    def is_reference(self) -> bool:
        """True if the policy was not aligned, and is the reference itself."""
        return self.record.path == REFERENCE

    @property
    def evaluation(self) -> Path:
        """Directory of the test prompts, and of the figures that were measured on them, if any."""
        return self.bundle / "evaluation" / self.name


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk. :func:`read_bundle` makes one.

    Args:
        path: Directory of the bundle.
        manifest: Content of ``bundle.json``.
        calibration: How the calibration was made.
        combination: Reference rewards and weight of each reward model.
        examples: Responses of the reference with their rewards. Every bundle on disk has some.
        scorer: How the prefix scorer was made; None if the bundle has none.

    Examples:
        >>> from pathlib import Path
        >>> import numpy as np
        >>> from infalign import Bundle, CalibrationTable, Combination
        >>> from infalign.manifest import CalibrationRecord, Manifest, SamplingLaw
        >>> law = SamplingLaw(max_tokens=64)
        >>> alignment = {"procedure": "best-of-4", "transformation": "exp(10)", "beta": 0.3, "measured": {"kl": 0.5}}
        >>> manifest = Manifest(
        ...     format=3, name="demo", created="2026-01-01", reference="r", reward_model="m", calibration="c",
        ...     sampling=law, libraries={}, files={}, policies={"demo": {**alignment, "path": "policy", "digest": "p"}},
        ... )
        >>> record = CalibrationRecord(
        ...     reference="r", reward_model="m", chat_template="t", sampling=law,
        ...     samples=2, prompts=1, estimator="jeffreys", resolution=1e-4,
        ... )
        >>> table = CalibrationTable(("ab" * 16,), np.array([[0.0, 1.0]]))
        >>> bundle = Bundle(Path("demo"), manifest, record, Combination((table,)))
        >>> bundle.policy().is_adapter, bundle.reference.as_posix(), bundle.table.samples
        (False, 'demo/reference', 2)
    """

    path: Path
    manifest: Manifest
    calibration: CalibrationRecord
    combination: Combination
    examples: tuple[RewardExample, ...] = ()
    scorer: ScorerRecord | None = None

    @property
    def reproductions(self) -> dict[str, Reproduction]:
        """The rewards of the examples that each reward model must reproduce, by its name."""
        names = self.calibration.model_names
        return {
            name: Reproduction.of(name, [example.rewards[name] for example in self.examples], table)
            for name, table in zip(names, self.combination.tables, strict=True)
        }

    @property
    def table(self) -> CalibrationTable:
        """The rewards of the reference, combined if there are several reward models."""
        return self.combination.table

    @property
    def policies(self) -> dict[str, BundledPolicy]:
        """Every policy by its name, the default first."""
        names = sorted(self.manifest.policies, key=lambda name: (name != self.manifest.name, name))
        return {name: BundledPolicy(name, self.path, self.manifest.policies[name]) for name in names}

    def policy(self, name: str | None = None) -> BundledPolicy:
        """Get a policy.

        Args:
            name: Name of the policy; None for the default.

        Returns:
            The policy.

        Raises:
            InvalidValue: The bundle has no policy of that name.
        """
        policy = self.policies.get(name or self.manifest.name)
        if policy is None:
            raise InvalidValue("policy", name, ", ".join(self.policies))
        return policy

    @property
    def reference(self) -> Path:
        """Directory of the reference, the model that the policies are aligned from."""
        return self.path / "reference"

    @property
    def reward_model(self) -> Path:
        """Directory of the reward model, or of all of them (:func:`infalign.files.reward_models`)."""
        return self.path / "reward"

    @property
    def prefix_scorer(self) -> Path:
        """Directory of the prefix scorer, which exists if :attr:`scorer` is not None."""
        return self.path / SCORER


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle.

    Args:
        path: Directory of the bundle.

    Returns:
        The bundle.

    Raises:
        BundleMissing: There is no bundle at ``path``, or a part is missing.
        BundleCorrupt: A file changed since it was written, or was added.
        BundleMismatch: The bundle has another format, or parts that were not made for each other.
        BundleUnsafe: The bundle has pickled weights.

    Examples:
        >>> from pathlib import Path
        >>> from infalign import BundleError, read_bundle
        >>> try:
        ...     read_bundle(Path("no-such-bundle"))
        ... except BundleError as error:
        ...     print(error)
        no-such-bundle: no bundle here (no bundle.json); make one with `infalign train demo`
    """
    if not (path / MANIFEST).is_file():
        raise BundleMissing(f"{path}: no bundle here (no {MANIFEST}); make one with `infalign train demo`")
    raw = read_json(path / MANIFEST)
    if raw.get("format") != FORMAT:
        raise BundleMismatch(f"{path}: bundle format {raw.get('format')!r}, this version reads {FORMAT}")
    manifest = read_record(Manifest, path / MANIFEST)
    files = hash_files(path)
    for name, sha in manifest.files.items():
        if name not in files:
            raise BundleMissing(f"{path}: {name} is missing")
        if files[name] != sha:
            raise BundleCorrupt(f"{path}: {name} has changed (SHA-256 {files[name][:12]}, written {sha[:12]})")
    if extra := sorted(files.keys() - manifest.files.keys()):
        raise BundleCorrupt(f"{path}: {extra[0]} was not written with the bundle")
    policy_paths = [policy.path for policy in manifest.policies.values()]
    measured = any(policy.transformation is not None for policy in manifest.policies.values())
    for part in (*SHARED_PARTS, *policy_paths, *(("evaluation",) if measured else ())):
        if not any(name.startswith(f"{part}/") for name in files):
            raise BundleMissing(f"{path}: {part}/ is missing")
    for name, policy in manifest.policies.items():
        if digest(files, policy.path) != policy.digest:
            raise BundleMismatch(f"{path}: {policy.path}/ is not the policy {name} that the manifest names")
    if pickles := sorted(name for name in files if name.endswith(PICKLE_SUFFIXES)):
        raise BundleUnsafe(f"{path}: {pickles[0]} is a pickle, accepted: weights in safetensors")
    combination, record = load_calibration(path / "calibration")
    _check_fit(path, manifest, record, files)
    scorer = _read_scorer(path, manifest, record, files)
    examples = load_examples(path / "calibration", record.model_names)
    return Bundle(path, manifest, record, combination, examples, scorer)


def check_joinable(bundle: Bundle, other: Bundle) -> None:
    """Check that the policies of a bundle are adapters that can be served beside those of another.

    Args:
        bundle: The bundle that is served.
        other: The bundle that is to join it.

    Raises:
        BundleMismatch: A policy of ``other`` is a whole model, or its reference, reward models or calibration differ.
    """
    for what in ("reference", "reward_model", "calibration", "sampling"):
        if getattr(other.manifest, what) != getattr(bundle.manifest, what):
            raise BundleMismatch(f"{other.path}: its {what} is not that of {bundle.path}")
    for name, policy in other.policies.items():
        if not policy.is_adapter:
            raise BundleMismatch(f"{other.path}: the policy {name} is a whole model; only adapters can be joined")


def _check_fit(path: Path, manifest: Manifest, record: CalibrationRecord, files: dict[str, str]) -> None:
    """Check that the calibration was made with the models, sampling law and chat template of the bundle."""
    several = sorted((record.reward_models or {}).items())
    for what, source, actual in (
        *((f"reward model {name}", model.digest, digest(files, f"reward/{name}")) for name, model in several),
        ("reward model", record.reward_model, digest(files, "reward")),
        ("reference", record.reference, digest(files, "reference")),
    ):
        if source != actual:
            raise BundleMismatch(
                f"{path}: the calibration was made for another {what} ({source[:12]}, the bundle has {actual[:12]})"
            )
    models = list(reward_models(path / "reward"))
    if models != record.model_names:
        raise BundleMismatch(
            f"{path}: the calibration was made by {', '.join(record.model_names)}, reward/ holds {', '.join(models)}"
        )
    if record.sampling != manifest.sampling:
        raise BundleMismatch(
            f"{path}: the calibration was made under another sampling law ({record.sampling}) "
            f"than the bundle's ({manifest.sampling})"
        )
    renderers = ("policy", "reference") if (path / "policy").is_dir() else ("reference",)
    for model in renderers:
        template = path / model / "chat_template.jinja"
        if not template.is_file():
            raise BundleMissing(f"{path}: {model}/chat_template.jinja is missing")
        if hash_file(template) != record.chat_template:
            raise BundleMismatch(f"{path}: the calibration was made with another chat template than {model}'s")


def _read_scorer(
    path: Path, manifest: Manifest, record: CalibrationRecord, files: dict[str, str]
) -> ScorerRecord | None:
    """Read the prefix scorer, if there is one, and check that it was made with the parts of the bundle."""
    parts = [name for name in files if name.startswith(f"{SCORER}/")]
    if not parts and not manifest.scorer:
        return None
    if not parts or not manifest.scorer:
        raise BundleMissing(f"{path}: {SCORER}/ is {'missing' if manifest.scorer else 'not in the manifest'}")
    if digest(files, SCORER) != manifest.scorer.digest:
        raise BundleMismatch(f"{path}: {SCORER}/ is not the scorer that the manifest names")
    scorer = load_scorer(path / SCORER)[1]
    for what, source, actual in (
        ("reference", scorer.reference, manifest.reference),
        ("reward model", scorer.reward_model, manifest.reward_model),
        ("calibration", scorer.calibration, manifest.calibration),
        ("chat template", scorer.chat_template, record.chat_template),
    ):
        if source != actual:
            raise BundleMismatch(
                f"{path}: the scorer was made for another {what} ({source[:12]}, the bundle has {actual[:12]})"
            )
    return scorer
