"""The bundle: the directory that training writes and the server reads.

bundle.json               who made what, and the SHA-256 of every other file
reference/                a Hugging Face causal LM (safetensors, tokenizer, chat template)
policy/                   another, the aligned one; or, of several policies on one reference,
adapters/NAME/            PEFT adapters
reward/                   AutoModelForSequenceClassification with one label; or, of several that are combined,
reward/NAME/              each
calibration/              references.safetensors (prompt keys, reference rewards of each model), calibration.json, and
                          examples.jsonl: a few responses with the raw reward of each model, to check models by
evaluation/NAME/          what each policy was measured to reach, and on what
README.md                 model card

Reading verifies every hash and that the parts were made for each other, and refuses by name. No pickles.
:mod:`infalign.bundling` writes bundles.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError
from safetensors.numpy import load_file, save_file

from infalign.calibration import CalibrationTable
from infalign.combination import Combination
from infalign.errors import BundleCorrupt, BundleMismatch, BundleMissing, BundleUnsafe, InvalidValue
from infalign.manifest import CalibrationRecord, Manifest, PolicyRecord
from infalign.reproduction import Reproduction, RewardExample, load_examples, reproduction

FORMAT = 3
MANIFEST = "bundle.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
SHARED = ("reference", "reward", "calibration")
"""Parts that every policy of a bundle has in common."""
WHOLE = "policy"
ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class BundledPolicy:
    """One policy of a bundle on disk."""

    name: str
    bundle: Path
    record: PolicyRecord

    @property
    def directory(self) -> Path:
        """The aligned model, or the adapter that makes it of the reference."""
        return self.bundle / self.record.path

    @property
    def is_adapter(self) -> bool:
        """Whether it is an adapter on the reference."""
        return self.record.path != WHOLE

    @property
    def evaluation(self) -> Path:
        """Directory of the measured figures and the prompts they were measured on."""
        return self.bundle / "evaluation" / self.name


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    manifest: Manifest
    calibration: CalibrationRecord
    combination: Combination
    examples: tuple[RewardExample, ...] = ()
    """Scored responses of the reference; every bundle on disk has some."""

    @property
    def reproductions(self) -> dict[str, Reproduction]:
        """What each reward model must say of the examples, by its name."""
        names = self.calibration.model_names
        return {
            name: reproduction(name, [example.rewards[name] for example in self.examples], table)
            for name, table in zip(names, self.combination.tables, strict=True)
        }

    @property
    def table(self) -> CalibrationTable:
        """The reference's rewards, combined where there are several."""
        return self.combination.table

    @property
    def policies(self) -> dict[str, BundledPolicy]:
        """Every policy by its name, the default first."""
        names = sorted(self.manifest.policies, key=lambda name: (name != self.manifest.name, name))
        return {name: BundledPolicy(name, self.path, self.manifest.policies[name]) for name in names}

    def policy(self, name: str | None = None) -> BundledPolicy:
        """The policy of that name, or the default.

        Raises:
            InvalidValue: there is none of that name.
        """
        found = self.policies.get(name or self.manifest.name)
        if found is None:
            raise InvalidValue("policy", name, ", ".join(self.policies))
        return found

    @property
    def reference(self) -> Path:
        """Directory of the model that the policy was aligned from."""
        return self.path / "reference"

    @property
    def reward_model(self) -> Path:
        """Directory of the reward model; of several, the one that each has its own in (:func:`reward_models`)."""
        return self.path / "reward"


def hash_files(root: Path) -> dict[str, str]:
    """Relative POSIX path -> SHA-256 of every file below ``root``, the manifest left out."""
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return {name: _sha256(path) for path in found if (name := path.relative_to(root).as_posix()) != MANIFEST}


def digest(files: dict[str, str], part: str = "") -> str:
    """One SHA-256 for all files whose path starts with ``part/`` (all files if empty)."""
    prefix = f"{part}/" if part else ""
    lines = [f"{path.removeprefix(prefix)} {sha}\n" for path, sha in sorted(files.items()) if path.startswith(prefix)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def directory_digest(root: Path) -> str:
    """:func:`digest` of a directory that is not yet part of a bundle."""
    return digest(hash_files(root))


def reward_models(directory: Path) -> dict[str, Path]:
    """Reward models in ``directory`` by name, in the order of their calibrations; ``reward`` if it is one itself."""
    if (directory / "config.json").is_file():
        return {"reward": directory}
    return {path.name: path for path in sorted(directory.iterdir()) if path.is_dir()}


def adapter_rank(directory: Path) -> int:
    """Rank of the adapter in ``directory``, by its own configuration."""
    return int(_read_json(directory / "adapter_config.json")["r"])


def positions(directory: Path) -> int:
    """Tokens that the model in ``directory`` can read, by its own configuration."""
    return int(_read_json(directory / "config.json")["max_position_embeddings"])


def save_calibration(directory: Path, combination: Combination, record: CalibrationRecord) -> None:
    """Write the tables and what they were made with into ``directory``.

    Rewards of one model are sorted; of several, column k stays the same response in each.
    """
    directory.mkdir(parents=True, exist_ok=True)
    first = combination.tables[0]
    keys = np.frombuffer(bytes.fromhex("".join(first.keys)), dtype=np.uint8).reshape(len(first), 16)
    tensors: dict[str, NDArray[Any]] = {"keys": keys.copy()}
    if record.reward_models:
        for name, table in zip(sorted(record.reward_models), combination.tables, strict=True):
            tensors[f"rewards/{name}"] = table.rewards.astype(np.float32)
    else:
        tensors["rewards"] = np.sort(first.rewards, axis=1).astype(np.float32)
    save_file(tensors, directory / "references.safetensors")
    text = record.model_dump_json(indent=2, exclude_none=True)
    (directory / "calibration.json").write_text(text + "\n", encoding="utf-8")


def load_calibration(directory: Path) -> tuple[Combination, CalibrationRecord]:
    """Read what :func:`save_calibration` wrote.

    Raises:
        BundleMismatch: tables and record disagree, or the record is not one.
    """
    record = _parse(CalibrationRecord, directory / "calibration.json")
    tensors = load_file(directory / "references.safetensors")
    names = sorted(record.reward_models or ())
    wanted = [f"rewards/{name}" for name in names] or ["rewards"]
    found = {name: rewards.shape for name, rewards in tensors.items() if name != "keys"}
    if found != dict.fromkeys(wanted, (record.prompts, record.samples)):
        raise BundleMismatch(
            f"{directory}: references.safetensors holds {found or 'no rewards'}, "
            f"calibration.json says {(record.prompts, record.samples)} for {', '.join(wanted)}"
        )
    keys = tuple(row.tobytes().hex() for row in tensors["keys"])
    tables = [
        CalibrationTable(keys, tensors[name].astype(np.float64), record.estimator, record.resolution) for name in wanted
    ]
    weights = tuple(record.reward_models[name].weight for name in names) if record.reward_models else (1.0,)
    return Combination(tuple(tables), weights), record


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle.

    Raises:
        BundleMissing: no bundle at ``path``, or a part is missing.
        BundleCorrupt: a file changed since it was written, or one was added.
        BundleMismatch: another format, or parts that were not made for each other.
        BundleUnsafe: there are pickled weights.
    """
    if not (path / MANIFEST).is_file():
        raise BundleMissing(f"{path}: no bundle here (no {MANIFEST}); make one with `infalign train demo`")
    raw = _read_json(path / MANIFEST)
    if raw.get("format") != FORMAT:
        raise BundleMismatch(f"{path}: bundle format {raw.get('format')!r}, this version reads {FORMAT}")
    manifest = _parse(Manifest, path / MANIFEST)
    found = hash_files(path)
    for name, expected in manifest.files.items():
        if name not in found:
            raise BundleMissing(f"{path}: {name} is missing")
        if found[name] != expected:
            raise BundleCorrupt(f"{path}: {name} has changed (SHA-256 {found[name][:12]}, written {expected[:12]})")
    if extra := sorted(found.keys() - manifest.files.keys()):
        raise BundleCorrupt(f"{path}: {extra[0]} was not written with the bundle")
    for part in (*SHARED, *(policy.path for policy in manifest.policies.values()), "evaluation"):
        if not any(name.startswith(f"{part}/") for name in found):
            raise BundleMissing(f"{path}: {part}/ is missing")
    for name, policy in manifest.policies.items():
        if digest(found, policy.path) != policy.digest:
            raise BundleMismatch(f"{path}: {policy.path}/ is not the policy {name} that the manifest names")
    if pickles := sorted(name for name in found if name.endswith(PICKLES)):
        raise BundleUnsafe(f"{path}: {pickles[0]} is a pickle, accepted: weights in safetensors")
    combination, record = load_calibration(path / "calibration")
    _check_fit(path, manifest, record, found)
    return Bundle(path, manifest, record, combination, load_examples(path / "calibration", record.model_names))


def check_joinable(bundle: Bundle, other: Bundle) -> None:
    """See that the policies of ``other`` are adapters that can be served beside those of ``bundle``.

    Raises:
        BundleMismatch: a policy is a whole model, or reference, reward models or calibration are not the same.
    """
    for what in ("reference", "reward_model", "calibration", "sampling"):
        if getattr(other.manifest, what) != getattr(bundle.manifest, what):
            raise BundleMismatch(f"{other.path}: its {what} is not that of {bundle.path}")
    for name, policy in other.policies.items():
        if not policy.is_adapter:
            raise BundleMismatch(f"{other.path}: the policy {name} is a whole model; only adapters can be joined")


def _check_fit(path: Path, manifest: Manifest, record: CalibrationRecord, files: dict[str, str]) -> None:
    several = sorted((record.reward_models or {}).items())
    for what, made_with, present in (
        *((f"reward model {name}", model.digest, digest(files, f"reward/{name}")) for name, model in several),
        ("reward model", record.reward_model, digest(files, "reward")),
        ("reference", record.reference, digest(files, "reference")),
    ):
        if made_with != present:
            raise BundleMismatch(
                f"{path}: the calibration was made for another {what} ({made_with[:12]}, the bundle has {present[:12]})"
            )
    held, scored = list(reward_models(path / "reward")), record.model_names
    if held != scored:
        raise BundleMismatch(
            f"{path}: the calibration was made by {', '.join(scored)}, reward/ holds {', '.join(held)}"
        )
    if record.sampling != manifest.sampling:
        raise BundleMismatch(
            f"{path}: the calibration was made under another sampling law ({record.sampling}) "
            f"than the bundle's ({manifest.sampling})"
        )
    rendering = ("policy", "reference") if (path / "policy").is_dir() else ("reference",)
    for model in rendering:
        template = path / model / "chat_template.jinja"
        if not template.is_file():
            raise BundleMissing(f"{path}: {model}/chat_template.jinja is missing")
        if _sha256(template) != record.chat_template:
            raise BundleMismatch(f"{path}: the calibration was made with another chat template than {model}'s")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise BundleCorrupt(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise BundleCorrupt(f"{path}: not a JSON object")
    return value


def _parse(model: type[ModelT], path: Path) -> ModelT:
    try:
        return model.model_validate(_read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BundleMismatch(f"{path}: {where}: {first['msg']}") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
