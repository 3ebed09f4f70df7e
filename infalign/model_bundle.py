"""The bundle of the models that ``infalign serve --policy`` names.

The command ``infalign bundle`` makes it, in a process of its own, so that nothing of the training package is loaded
here. It is kept below ``$INFALIGN_HOME``, and made again when a model, a file or an option has changed.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from infalign.errors import InfAlignError
from infalign.files import MANIFEST
from infalign.home import bundle_path
from infalign.names import model_name


class BundleNotMade(InfAlignError):
    """The bundle of the named models could not be made. The command that failed has said why."""


def make_bundle(policy: str, options: Mapping[str, Sequence[str]]) -> Path:
    """Make the bundle of a policy and its rewards, or find the one that was made before.

    Args:
        policy: Directory of the policy, or its id on the hub.
        options: Values of further options of ``infalign bundle``, by their names.

    Returns:
        Directory of the bundle.

    Raises:
        BundleNotMade: It could not be made.
    """
    arguments = [
        "--policy",
        policy,
        *(part for name, values in options.items() for value in values for part in (name, value)),
    ]
    state = json.dumps([arguments, [_describe(source) for source in arguments[1::2]]])
    name = model_name(policy, "policy")
    target = bundle_path(f"{name}-{hashlib.sha256(state.encode()).hexdigest()[:8]}")
    if not (target / MANIFEST).is_file():
        command = [sys.executable, "-m", "infalign", "bundle", *arguments, "--name", name, "--output", str(target)]
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            raise BundleNotMade("the bundle of these models could not be made; see above")
    return target


def _describe(source: str) -> object:
    """What tells whether a model, a file or a function has changed since a bundle was made of it."""
    scheme, _, rest = source.partition(":")
    path = Path(rest if scheme in ("judge", "function") else source).expanduser()
    if scheme == "function":
        spec = find_spec(rest.partition(":")[0])
        path = Path(spec.origin) if spec and spec.origin else path
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
