"""`infalign serve` refuses a bundle that must not be served, in one line."""

import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from infalign import Bundle
from infalign.files import digest, hash_files
from tests.integration.conftest import INFALIGN


def flip_a_byte(copy: Path) -> str:
    weights = copy / "policy" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    return "policy/model.safetensors has changed"


def lose_the_reward_model(copy: Path) -> str:
    shutil.rmtree(copy / "reward")
    return "reward/"


def lose_the_manifest(copy: Path) -> str:
    (copy / "bundle.json").unlink()
    return "no bundle here"


def another_reward_model(copy: Path) -> str:
    """A consistent bundle in every hash, whose calibration was made with another reward model."""
    config = copy / "reward" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"revision": 2}))
    manifest = json.loads((copy / "bundle.json").read_text())
    manifest["files"] = hash_files(copy)
    manifest["reward_model"] = digest(manifest["files"], "reward")
    (copy / "bundle.json").write_text(json.dumps(manifest))
    return "the calibration was made for another reward model"


@pytest.mark.parametrize("damage", [flip_a_byte, lose_the_reward_model, lose_the_manifest, another_reward_model])
def test_a_bad_bundle_is_refused_in_one_line(bundle: Bundle, tmp_path: Path, damage: Callable[[Path], str]) -> None:
    copy = tmp_path / "demo"
    shutil.copytree(bundle.path, copy)
    expected = damage(copy)
    done = subprocess.run([INFALIGN, "serve", str(copy), "--port", "0"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_taken_port_is_refused_in_one_line(bundle: Bundle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [INFALIGN, "serve", str(bundle.path), "--port", port], capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in done.stderr
    assert done.stderr.count("\n") == 1
