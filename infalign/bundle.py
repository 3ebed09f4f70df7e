"""The bundle: the directory that training writes and the server reads.

bundle.json               who made what, and the SHA-256 of every other file
policy/ reference/        Hugging Face causal LMs (safetensors, tokenizer, chat template)
reward/                   AutoModelForSequenceClassification with one label
calibration/              references.safetensors (prompt keys, reference rewards) + calibration.json
README.md                 model card

Writing is atomic (a temporary sibling, renamed when complete); reading verifies every hash and that the parts
were made for each other, and refuses by name. No pickles.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors.numpy import load_file, save_file

from infalign.calibration import CalibrationTable, Estimator
from infalign.errors import BundleCorrupt, BundleMismatch, BundleMissing
from infalign.procedures import parse_procedure
from infalign.transforms import check_transformation

FORMAT = 1
MANIFEST = "bundle.json"
PARTS = ("policy", "reference", "reward", "calibration", "evaluation")
ModelT = TypeVar("ModelT", bound=BaseModel)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SamplingLaw(_Record):
    """How candidates are drawn from a model; a calibration holds only for its own law."""

    temperature: float = Field(1.0, gt=0, description="softmax temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus mass; 1 keeps everything")
    top_k: int = Field(0, ge=0, description="most likely tokens kept; 0 keeps everything")
    max_tokens: int = Field(gt=0, description="length limit of a response, in tokens")


class CalibrationRecord(_Record):
    """What a calibration was made with (``calibration/calibration.json``)."""

    reference: str = Field(description="digest of the reference that was sampled")
    reward_model: str = Field(description="digest of the reward model that scored")
    chat_template: str = Field(description="SHA-256 of the chat template that prompts were rendered with")
    sampling: SamplingLaw
    samples: int = Field(gt=0, description="K, reference rewards per prompt")
    prompts: int = Field(gt=0, description="prompts in the table")
    estimator: Estimator
    resolution: float = Field(gt=0, description="grid that rewards are compared on")


def _parsed_by(parse: Callable[[str], object]) -> AfterValidator:
    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


class Manifest(_Record):
    """``bundle.json``."""

    format: int
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="model name that the server answers to")
    created: str = Field(description="UTC, ISO 8601")
    policy: str = Field(description="digest of policy/")
    reference: str = Field(description="digest of reference/")
    reward_model: str = Field(description="digest of reward/")
    calibration: str = Field(description="digest of calibration/")
    procedure: Annotated[str, _parsed_by(parse_procedure)]
    transformation: Annotated[str, _parsed_by(check_transformation)]
    beta: float = Field(gt=0)
    sampling: SamplingLaw
    measured: dict[str, float] = Field(description="figures measured on test prompts")
    libraries: dict[str, str]
    files: dict[str, str] = Field(description="relative path -> SHA-256")


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    manifest: Manifest
    calibration: CalibrationRecord
    table: CalibrationTable

    @property
    def policy(self) -> Path:
        """Directory of the aligned model."""
        return self.path / "policy"

    @property
    def reference(self) -> Path:
        """Directory of the model that the policy was aligned from."""
        return self.path / "reference"

    @property
    def evaluation(self) -> Path:
        """Directory of the measured figures and the prompts they were measured on."""
        return self.path / "evaluation"

    @property
    def reward_model(self) -> Path:
        """Directory of the reward model."""
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


def save_calibration(directory: Path, table: CalibrationTable, record: CalibrationRecord) -> None:
    """Write ``table`` and what it was made with into ``directory``."""
    directory.mkdir(parents=True, exist_ok=True)
    keys = np.frombuffer(bytes.fromhex("".join(table.keys)), dtype=np.uint8).reshape(len(table), 16)
    tensors: dict[str, NDArray[Any]] = {
        "keys": keys.copy(),
        "rewards": np.sort(table.rewards, axis=1).astype(np.float32),
    }
    save_file(tensors, directory / "references.safetensors")
    (directory / "calibration.json").write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_calibration(directory: Path) -> tuple[CalibrationTable, CalibrationRecord]:
    """Read what :func:`save_calibration` wrote.

    Raises:
        BundleMismatch: table and record disagree, or the record is not one.
    """
    record = _parse(CalibrationRecord, directory / "calibration.json")
    tensors = load_file(directory / "references.safetensors")
    if tensors["rewards"].shape != (record.prompts, record.samples):
        raise BundleMismatch(
            f"{directory}: references.safetensors holds {tensors['rewards'].shape} rewards, "
            f"calibration.json says {(record.prompts, record.samples)}"
        )
    keys = tuple(row.tobytes().hex() for row in tensors["keys"])
    rewards = tensors["rewards"].astype(np.float64)
    return CalibrationTable(keys, rewards, record.estimator, record.resolution), record


def write_bundle(target: Path, parts: dict[str, Path], card: str, **fields: Any) -> Bundle:
    """Assemble a bundle at ``target``, atomically; an older bundle there is replaced.

    One process at a time may write a target: what a killed one left beside it is removed.

    Args:
        target: the bundle's directory.
        parts: source directory of each of policy, reference, reward, calibration and evaluation.
        card: the model card, Markdown.
        fields: the fields of :class:`Manifest` that are not derived from the files.

    Raises:
        BundleError: the parts do not fit each other; nothing is written then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for part in PARTS:
            shutil.copytree(parts[part], staging / part)
        (staging / "README.md").write_text(card, encoding="utf-8")
        files = hash_files(staging)
        manifest = Manifest(
            format=FORMAT,
            policy=digest(files, "policy"),
            reference=digest(files, "reference"),
            reward_model=digest(files, "reward"),
            calibration=digest(files, "calibration"),
            files=files,
            **fields,
        )
        (staging / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        verified = read_bundle(staging)
        _fsync(staging)
        _replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return replace(verified, path=target)


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle.

    Raises:
        BundleMissing: no bundle at ``path``, or a part is missing.
        BundleCorrupt: a file changed since it was written, or one was added.
        BundleMismatch: another format, or parts that were not made for each other.
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
    for part in PARTS:
        if not any(name.startswith(f"{part}/") for name in found):
            raise BundleMissing(f"{path}: {part}/ is missing")
    table, record = load_calibration(path / "calibration")
    _check_fit(path, manifest, record, digest(found, "reference"), digest(found, "reward"))
    return Bundle(path, manifest, record, table)


def _check_fit(path: Path, manifest: Manifest, record: CalibrationRecord, reference: str, reward: str) -> None:
    for what, made_with, present in (
        ("reward model", record.reward_model, reward),
        ("reference", record.reference, reference),
    ):
        if made_with != present:
            raise BundleMismatch(
                f"{path}: the calibration was made for another {what} ({made_with[:12]}, the bundle has {present[:12]})"
            )
    if record.sampling != manifest.sampling:
        raise BundleMismatch(
            f"{path}: the calibration was made under another sampling law ({record.sampling}) "
            f"than the bundle's ({manifest.sampling})"
        )
    for model in ("policy", "reference"):
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


def _fsync(root: Path) -> None:
    for path in [*root.rglob("*"), root]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(staging: Path, target: Path) -> None:
    """Move ``staging`` to ``target``; what was there goes only once the new one is in place."""
    staging.chmod(0o755)
    retired = None
    if target.exists():
        retired = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        target.rename(retired / "old")
    try:
        staging.rename(target)
    except OSError:
        if retired:
            (retired / "old").rename(target)
        raise
    finally:
        if retired:
            shutil.rmtree(retired, ignore_errors=True)
