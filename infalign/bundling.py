"""Writing bundles, atomically: from the parts that training made, or from other bundles."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infalign.bundle import (
    FORMAT,
    REFERENCE,
    SCORER,
    SHARED_PARTS,
    WHOLE_POLICY,
    Bundle,
    BundledPolicy,
    check_joinable,
    read_bundle,
)
from infalign.errors import BundleMismatch
from infalign.files import MANIFEST, digest, directory_digest, hash_files
from infalign.manifest import Alignment, Manifest, PolicyRecord, ScorerEntry
from infalign.prefix_scorer import load_scorer, save_scorer


@dataclass(frozen=True)
class NewPolicy:
    """A policy that :func:`write_bundle` puts into a bundle.

    Args:
        directory: Directory of the model or adapter. None if the policy is the reference itself.
        evaluation: Directory of its test prompts and of the figures measured on them. None if there are none.
        adapter: True for an adapter on the reference, False for a whole model.
        alignment: What the policy was aligned for, and the figures it reached.

    Examples:
        >>> from pathlib import Path
        >>> from infalign import Alignment, NewPolicy
        >>> alignment = Alignment(procedure="best-of-4", transformation="exp(10)", beta=0.3, measured={"kl": 0.5})
        >>> NewPolicy(Path("policy"), Path("evaluation"), adapter=False, alignment=alignment).alignment.procedure
        'best-of-4'
    """

    directory: Path | None = None
    evaluation: Path | None = None
    adapter: bool = False
    alignment: Alignment = field(default_factory=lambda: Alignment(measured={}))

    def path(self, name: str) -> str:
        """Directory in the bundle of a policy of this name."""
        if self.directory is None:
            return REFERENCE
        return f"adapters/{name}" if self.adapter else WHOLE_POLICY


def write_bundle(
    target: Path, parts: dict[str, Path], policies: dict[str, NewPolicy], card: str, **fields: Any
) -> Bundle:
    """Assemble a bundle atomically, and replace an older bundle in the same place.

    Only one process at a time may write a target: the files that a killed one left beside it are removed.

    Args:
        target: Directory of the bundle.
        parts: Source directory of each of reference, reward and calibration, and of scorer if there is one.
        policies: Each policy by the model name that the server answers to.
        card: The model card, in Markdown.
        fields: The fields of :class:`infalign.manifest.Manifest` that do not come from the files.

    Returns:
        The bundle, read back and verified.

    Raises:
        BundleError: The parts do not fit each other. Nothing is written then.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from infalign import write_bundle
        >>> parts = {"reference": Path("no-such-model")}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     try:
        ...         write_bundle(Path(folder, "bundle"), parts, {}, "# A card")
        ...     except FileNotFoundError as error:
        ...         print(error.filename, list(Path(folder).iterdir()))
        no-such-model []
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}-*.new"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".new", dir=target.parent))
    paths = {name: policy.path(name) for name, policy in policies.items()}
    try:
        for part in (*SHARED_PARTS, *((SCORER,) if SCORER in parts else ())):
            _copy_part(parts[part], staging / part)
        scorer = load_scorer(staging / SCORER)[1] if SCORER in parts else None
        for name, policy in policies.items():
            if policy.directory:
                _copy_part(policy.directory, staging / paths[name])
            if policy.evaluation:
                _copy_part(policy.evaluation, staging / "evaluation" / name)
        (staging / "README.md").write_text(card, encoding="utf-8")
        files = hash_files(staging)
        manifest = Manifest(
            format=FORMAT,
            policies={
                name: PolicyRecord(
                    **dict(policy.alignment) | {"path": paths[name], "digest": digest(files, paths[name])}
                )
                for name, policy in policies.items()
            },
            reference=digest(files, "reference"),
            reward_model=digest(files, "reward"),
            calibration=digest(files, "calibration"),
            scorer=scorer and ScorerEntry(digest=digest(files, SCORER), measured=scorer.measured),
            files=files,
            **fields,
        )
        (staging / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        bundle = read_bundle(staging)
        _fsync(staging)
        _replace(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return replace(bundle, path=target)


def rewrite_bundle(
    bundle: Bundle,
    target: Path | None = None,
    *,
    policies: dict[str, NewPolicy] | None = None,
    calibration: Path | None = None,
    name: str | None = None,
    card: str | None = None,
) -> Bundle:
    """Write a bundle anew with other policies or another calibration.

    Args:
        bundle: The bundle.
        target: Directory of the new bundle. By default it replaces the old one.
        policies: The policies, in place of the bundle's.
        calibration: Directory of the calibration, in place of the bundle's.
        name: Name of the default policy; that of the bundle if left out.
        card: The model card, in Markdown; that of the bundle if left out.

    Returns:
        The new bundle.

    Raises:
        BundleError: The parts do not fit each other. Nothing is written then.
    """
    policies = policies or {name: keep_policy(policy) for name, policy in bundle.policies.items()}
    manifest = bundle.manifest
    parts = {part: bundle.path / part for part in SHARED_PARTS} | ({"calibration": calibration} if calibration else {})
    with tempfile.TemporaryDirectory(
        dir=bundle.path.parent, prefix=f".{bundle.path.name}-", suffix=".scorer"
    ) as folder:
        if bundle.scorer:
            parts[SCORER] = _fit_scorer(bundle, calibration, Path(folder)) if calibration else bundle.prefix_scorer
        return write_bundle(
            target or bundle.path,
            parts,
            policies,
            card or (bundle.path / "README.md").read_text(encoding="utf-8"),
            name=name or manifest.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            origins=manifest.origins,
            sampling=manifest.sampling,
            libraries=manifest.libraries,
        )


def join_bundles(bundles: Sequence[Bundle], target: Path) -> Bundle:
    """Write one bundle with the adapters of several bundles.

    The default policy of the first bundle becomes the default.

    Args:
        bundles: Bundles with the same reference, reward models and calibration.
        target: Directory of the new bundle.

    Returns:
        The new bundle.

    Raises:
        BundleMismatch: A policy is no adapter, two bundles have a policy of the same name, or their parts differ.

    Examples:
        >>> from pathlib import Path
        >>> from infalign import BundleError, join_bundles, read_bundle
        >>> try:
        ...     join_bundles([read_bundle(Path("no-such-bundle"))], Path("joined"))
        ... except BundleError as error:
        ...     print(error)
        no-such-bundle: no bundle here (no bundle.json); make one with `infalign train demo`
    """
    policies: dict[str, NewPolicy] = {}
    for bundle in bundles:
        check_joinable(bundles[0], bundle)
        for name, policy in bundle.policies.items():
            if name in policies:
                raise BundleMismatch(f"{bundle.path}: another bundle has a policy {name} too")
            policies[name] = keep_policy(policy)
    return rewrite_bundle(bundles[0], target, policies=policies, card=_card(policies))


def _fit_scorer(bundle: Bundle, calibration: Path, folder: Path) -> Path:
    """Copy the scorer of a bundle for a calibration by the same models, of more prompts. Its laws stay valid."""
    assert bundle.scorer  # noqa: S101 - the caller has checked
    scorer = folder / SCORER
    _copy_part(bundle.prefix_scorer, scorer)
    record = bundle.scorer.model_copy(update={"calibration": directory_digest(calibration)})
    save_scorer(scorer, record)
    return scorer


def keep_policy(policy: BundledPolicy) -> NewPolicy:
    """Return a policy of a bundle, as it is put into another."""
    directory = None if policy.is_reference else policy.directory
    evaluation = policy.evaluation if policy.evaluation.is_dir() else None  # one that was not aligned here has none
    return NewPolicy(directory, evaluation, policy.is_adapter, policy.record)


def _card(policies: dict[str, NewPolicy]) -> str:
    lines = [
        "---",
        "library_name: infalign",
        "tags: [infalign, ctrl, best-of-n]",
        "---",
        "# Policies on one reference",
        "",
        "Adapters aligned by CTRL (InfAlign, arXiv 2412.19792), each for its own procedure, on `reference/`; one",
        "reward and one calibration for all. `infalign serve` serves them; a request names one as its model.",
        "",
        "| policy | aligned for | by | KL | win rate there |",
        "|---|---|---|---|---|",
    ]
    for name, policy in policies.items():
        a = policy.alignment
        figures = (a.measured.get(key) for key in ("kl", f"win_rate_{a.procedure}"))
        kl, win_rate = ("" if figure is None else f"{figure:.3f}" for figure in figures)
        title = f"[{name}](evaluation/{name})" if policy.evaluation else name
        lines.append(f"| {title} | {a.procedure} | {a.transformation or 'nothing'} | {kl} | {win_rate} |")
    return "\n".join(lines) + "\n"


def _copy_part(source: Path, target: Path) -> None:
    shutil.copytree(source, target, copy_function=_link_weights)


def _link_weights(source: str, target: str) -> None:
    """Link a file of weights, which nobody edits and which may have gigabytes, and copy any other file."""
    if source.endswith(".safetensors"):
        with suppress(OSError):  # another file system, or one without links
            os.link(source, target)
            return
    shutil.copy2(source, target)


def _fsync(root: Path) -> None:
    for path in [*root.rglob("*"), root]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _replace(staging: Path, target: Path) -> None:
    """Move ``staging`` to ``target``. An older bundle goes only once the new one is in place."""
    staging.chmod(0o755)
    trash = None
    if target.exists():
        trash = Path(tempfile.mkdtemp(prefix=f".{target.name}-", suffix=".new", dir=target.parent))
        target.rename(trash / "old")
    try:
        staging.rename(target)
    except OSError:
        if trash:
            (trash / "old").rename(target)
        raise
    finally:
        if trash:
            shutil.rmtree(trash, ignore_errors=True)
