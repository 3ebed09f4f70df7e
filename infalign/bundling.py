"""Writing bundles: atomically, from the parts that training made or from other bundles."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infalign.bundle import FORMAT, MANIFEST, SHARED, WHOLE, Bundle, check_joinable, digest, hash_files, read_bundle
from infalign.errors import BundleMismatch
from infalign.manifest import Alignment, Manifest, PolicyRecord


@dataclass(frozen=True)
class NewPolicy:
    """A policy that is to go into a bundle."""

    directory: Path
    evaluation: Path
    adapter: bool
    alignment: Alignment


def write_bundle(
    target: Path, parts: dict[str, Path], policies: dict[str, NewPolicy], card: str, **fields: Any
) -> Bundle:
    """Assemble a bundle at ``target``, atomically; an older bundle there is replaced.

    One process at a time may write a target: what a killed one left beside it is removed.

    Args:
        target: the bundle's directory.
        parts: source directory of each of reference, reward and calibration.
        policies: by the names that the server is to answer to.
        card: the model card, Markdown.
        fields: the fields of :class:`Manifest` that are not derived from the files.

    Raises:
        BundleError: the parts do not fit each other; nothing is written then.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    paths = {name: f"adapters/{name}" if policy.adapter else WHOLE for name, policy in policies.items()}
    try:
        for part in SHARED:
            shutil.copytree(parts[part], staging / part)
        for name, policy in policies.items():
            shutil.copytree(policy.directory, staging / paths[name])
            shutil.copytree(policy.evaluation, staging / "evaluation" / name)
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


def join_bundles(bundles: Sequence[Bundle], target: Path) -> Bundle:
    """One bundle of all the adapters of ``bundles``, which share reference, reward models and calibration.

    The first bundle's default policy is the default.

    Raises:
        BundleMismatch: a policy that is no adapter, a name that two of them have, or parts that are not the same.
    """
    first = bundles[0].manifest
    policies: dict[str, NewPolicy] = {}
    for bundle in bundles:
        check_joinable(bundles[0], bundle)
        for name, policy in bundle.policies.items():
            if name in policies:
                raise BundleMismatch(f"{bundle.path}: another bundle has a policy {name} too")
            policies[name] = NewPolicy(policy.directory, policy.evaluation, True, policy.record)
    return write_bundle(
        target,
        {part: bundles[0].path / part for part in SHARED},
        policies,
        _card(policies),
        name=first.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        sampling=first.sampling,
        libraries=first.libraries,
    )


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
        kl, won = (f"{a.measured[key]:.3f}" if key in a.measured else "" for key in ("kl", f"win_rate_{a.procedure}"))
        lines.append(f"| [{name}](evaluation/{name}) | {a.procedure} | {a.transformation} | {kl} | {won} |")
    return "\n".join(lines) + "\n"


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
