"""The keys file, and the command that writes it."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from server.access.keys import KEY_PREFIX, BadKeysFile, hash_key, read_keys
from tests.keys import key, keys_file

GOOD: dict[str, Any] = {"sha256": "0" * 64, "roles": ["generate"]}


def infalign(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "infalign", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "not JSON"),
        ("[]", "body: got"),
        ("{}", "keys: got None, accepted: this field is required"),
        ({"keys": {"app": GOOD | {"rolez": 1}}}, "keys.app.rolez: got '…', accepted: no such key; did you mean roles?"),
        ({"keys": {"app": GOOD | {"roles": []}}}, "keys.app.roles: got []"),
        ({"keys": {"app": GOOD | {"roles": ["god"]}}}, "keys.app.roles.0: got 'god'"),
        ({"keys": {"app": GOOD | {"concurrent": 0}}}, "keys.app.concurrent: got 0"),
        ({"keys": {"app": GOOD | {"requests_per_minute": "9"}}}, "keys.app.requests_per_minute: got '9'"),
        ({"keys": {"app": {"roles": ["probe"]}}}, "keys.app.sha256: got None"),
        ({"keys": {"a b": GOOD}}, "keys.a b"),
        ({"keys": {"one": GOOD, "two": GOOD}}, "a key of its own for every name"),
        ({"keys": {}, "keyz": {}}, "keyz: got '…', accepted: no such key; did you mean keys?"),
    ],
)
def test_a_file_that_is_none_says_where(tmp_path: Path, content: object, why: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(BadKeysFile) as refused:
        read_keys(path)
    assert str(refused.value).startswith(f"--keys {path}: ")
    assert why in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("field", ["sha256", "key"])
def test_a_key_in_the_place_of_its_hash_is_not_repeated(tmp_path: Path, field: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": {"app": GOOD | {field: key("app")}}}))
    with pytest.raises(BadKeysFile) as refused:
        read_keys(path)
    assert f"keys.app.{field}" in str(refused.value)
    assert key("app") not in str(refused.value)


def test_a_file_that_others_may_read_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = keys_file(tmp_path, "app")
    assert set(read_keys(path)) == {"app"}
    assert not caplog.records
    path.chmod(0o644)
    read_keys(path)
    assert "chmod 600" in caplog.text


def test_the_command_makes_keys_and_takes_them_back(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first = infalign("key", "app", "--role", "generate", "--requests-per-minute", "60", "--keys", str(path))
    second = infalign(
        "key", "safety", "--role", "generate", "--role", "probe", "--concurrent", "4", INFALIGN_KEYS=str(path)
    )
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    made = first.stdout.strip()
    assert made.startswith(KEY_PREFIX)
    assert len(made) >= len(KEY_PREFIX) + 43  # 256 bits in base 64
    assert made not in first.stderr
    assert made != second.stdout.strip()
    assert made not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    known = read_keys(path)
    assert known["app"].sha256 == hash_key(made.encode())
    assert (known["app"].requests_per_minute, known["app"].concurrent) == (60, None)
    assert known["safety"].roles == ("generate", "probe")

    removed = infalign("key", "app", "--remove", "--keys", str(path))
    assert (removed.returncode, removed.stdout) == (0, "")
    assert set(read_keys(path)) == {"safety"}
    assert [file.name for file in tmp_path.iterdir()] == ["keys.json"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["app", "--role", "generate"], "NAME: got 'app'"),
        (["new"], "--role: got None"),
        (["new", "--role", "god"], "'god'"),
        (["new", "--role", "probe", "--concurrent", "0"], "--concurrent"),
        (["a b", "--role", "probe"], "NAME: got 'a b'"),
        (["new\n", "--role", "probe"], "NAME: got 'new\\n'"),
        (["new", "--remove"], "NAME: got 'new', accepted: a name in"),
        (["app", "--remove", "--role", "probe"], "--remove"),
    ],
)
def test_the_command_refuses_in_one_line_and_leaves_the_file(tmp_path: Path, arguments: list[str], why: str) -> None:
    path = keys_file(tmp_path, "app")
    before = path.read_bytes()
    done = infalign("key", *arguments, "--keys", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert why in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.read_bytes() == before


def test_a_broken_file_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text("{")
    done = infalign("key", "app", "--role", "admin", "--keys", str(path))
    assert done.returncode == 2
    assert "not JSON" in done.stderr
    assert path.read_text() == "{"
    missing = infalign("key", "app", "--role", "admin", "--keys", str(tmp_path / "no" / "keys.json"))
    assert missing.returncode == 2
    assert "No such file or directory" in missing.stderr


def test_the_server_stays_on_this_machine_without_keys(tmp_path: Path) -> None:
    for host in ("0.0.0.0", "::"):
        done = infalign("serve", "--host", host, "--port", "0", INFALIGN_HOME=str(tmp_path))
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert f"--host: got '{host}', accepted: without keys, 127.0.0.1" in done.stderr
        assert "infalign key NAME" in done.stderr
    reachable = infalign(
        "serve", "--host", "0.0.0.0", "--port", "0", "--keys", "keys.json", INFALIGN_HOME=str(tmp_path)
    )
    assert reachable.returncode == 2
    assert "no bundle" in reachable.stderr  # past the question of keys
