"""The manifest says what was trained, even if the process that wrote it was killed."""

import hashlib
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest

from neuscale.errors import UserError
from neuscale.runs import environment, manifest
from neuscale.runs.environment import code_revision, image, lock_hash
from neuscale.runs.manifest import load_manifest, read_manifest, write_manifest

WRITER = """
import itertools, sys
from pathlib import Path
from neuscale.runs.manifest import write_manifest
for i in itertools.count():
    write_manifest(Path(sys.argv[1]), {"number": i, "text": "x" * (i % 977) * 100})
"""


def test_killed_at_any_moment_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    chance = random.Random(0)
    for _ in range(12):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)])
        while not path.exists():
            assert writer.poll() is None
            time.sleep(0.005)
        time.sleep(chance.random() * 0.05)
        writer.kill()
        writer.wait()
        found = json.loads(path.read_text())
        assert len(found["text"]) == found["number"] % 977 * 100


def test_written_and_read(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.json", {"name": "ä", "resumed": [], "error": None})
    assert read_manifest(tmp_path / "manifest.json") == {"name": "ä", "resumed": [], "error": None}
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("content", [None, b"", b'{"a": ', b"[1]", b"\xff\xfe"])
def test_one_that_cannot_be_read_is_empty(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    assert read_manifest(tmp_path / "manifest.json") == {}


@pytest.mark.skipif(shutil.which("git") is None, reason="no git on this machine")
def test_the_code_is_named_with_whether_it_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs with the same revision and different changes do not have the same code."""

    def git(*words: str) -> None:
        who = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *who, *words], check=True, capture_output=True)

    monkeypatch.setattr(environment, "IMAGE_RECORD", tmp_path / "none.json")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "runs" / "environment.py"))
    assert code_revision() is None
    git("init")
    (tmp_path / "manifest.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "one")
    clean = code_revision()
    assert clean is not None
    assert (len(clean["revision"]), clean["changed"]) == (40, False)
    (tmp_path / "manifest.py").write_text("2")
    assert code_revision() == {"revision": clean["revision"], "changed": True}


@pytest.mark.parametrize(("revision", "changed"), [("ab12", False), ("ab12-dirty", True)])
def test_in_an_image_the_code_is_the_one_it_was_built_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, revision: str, changed: bool
) -> None:
    """An image has no git, so that a run in it would otherwise not know its revision."""
    record = {"version": "1", "revision": revision, "lock_sha256": "00"}
    write_manifest(tmp_path / "image.json", record)
    monkeypatch.setattr(environment, "IMAGE_RECORD", tmp_path / "image.json")
    assert environment.image_record() == record
    assert code_revision() == {"revision": "ab12", "changed": changed}


def test_an_image_is_named_as_it_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "IMAGE_RECORD", tmp_path / "image.json")
    assert image() is None
    write_manifest(tmp_path / "image.json", {"version": "1", "lock_sha256": "ab"})
    (tmp_path / "sbom.spdx.json").write_bytes(b"{}")
    monkeypatch.setenv("NEUSCALE_IMAGE", "neuscale:1")
    monkeypatch.setenv("NEUSCALE_IMAGE_DIGEST", "sha256:00")
    found = image()
    assert found is not None
    assert (found["name"], found["digest"]) == ("neuscale:1", "sha256:00")
    assert found["sbom_sha256"] == hashlib.sha256(b"{}").hexdigest()
    assert lock_hash() == "ab"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no manifest"),
        ("", "damaged"),
        ('{"a": ', "damaged"),
        ("[1]", "damaged"),
        ("{}", "damaged"),
        ('{"version": 3, "status": "finished"}', "is of version 3, and this program reads 1 to 2"),
        ('{"version": "x", "status": "finished"}', "is of version x"),
    ],
)
def test_one_that_says_nothing_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        load_manifest(path)
    assert str(path) in caught.value.problem
    assert "\n" not in caught.value.problem


# A manifest as the first version of the program wrote it.
FIRST = {
    "command": ["neuscale", "train"],
    "started": "2026-11-20T12:00:00+00:00",
    "status": "stopped",
    "neuscale": "0.1.0",
    "code": {"revision": "0" * 40, "changed": False},
    "image": None,
    "python": "3.11.7",
    "packages": {"torch": "2.15.0", "timm": None},
    "machine": {"system": "Linux", "device": "CPU, 2 threads", "processes": 1},
    "precision": "fp32",
    "seed": 0,
    "data": {"name": "tiny", "fingerprint": "0" * 64, "counts": {"train": 1}, "source": {}},
    "resumed": [{"time": "2026-11-20T12:10:00+00:00", "step": 5}],
    "loader": {"kind": "resident", "reason": "it fits"},
    "ops": {"kind": "eager", "reason": ""},
}


def test_one_of_the_first_version_is_read_as_todays(tmp_path: Path) -> None:
    write_manifest(tmp_path / "manifest.json", FIRST)
    found = load_manifest(tmp_path / "manifest.json")
    jsonschema.validate(found, json.loads(manifest.SCHEMA.read_text()))
    assert (found["machine"]["kind"], found["machine"]["threads"]) == ("cpu", 2)
    assert found["packages"] == {"torch": "2.15.0"}
    assert found["migrated_from"] == 1
