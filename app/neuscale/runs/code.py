"""The code that a run is made by: its revision, what was changed in it, and a hash of all of it."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from neuscale.runs.manifest import code_revision, image_record

PACKAGE = Path(__file__).parent.parent


def describe_code() -> tuple[dict[str, Any], bytes]:
    """(what a manifest says of the code, the uncommitted difference as a patch).

    `revision` and `changed` are null where neither git nor an image knows them; `source_sha256`
    is over the package's own files, so that equal code is known as equal wherever it lies.
    """
    known = code_revision() or {"revision": None, "changed": None}
    patch = uncommitted(PACKAGE) if known["changed"] and image_record() is None else b""
    diff = {"file": "code.diff", "sha256": hashlib.sha256(patch).hexdigest()} if patch else None
    return {**known, "source_sha256": source_hash(PACKAGE), "diff": diff}, patch


def source_hash(folder: Path) -> str:
    """sha256 over the names and bytes of the files below `folder`, without what Python compiled."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and "__pycache__" not in inside.parts and not path.name.startswith("."):
            content = path.read_bytes()
            digest.update(f"{inside.as_posix()}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()


def uncommitted(folder: Path) -> bytes:
    """What differs in `folder` from its last commit, for `git apply`, new files too; empty without git."""

    def git(*words: str) -> bytes:
        command = ["git", "-C", str(folder), "-c", "core.quotepath=off", *words]
        done = subprocess.run(command, capture_output=True, timeout=30, check=False)
        if done.returncode not in (0, 1):  # 1: diff --no-index found what it was asked for
            raise subprocess.CalledProcessError(done.returncode, command)
        return done.stdout

    options = ("--binary", "--no-color", "--no-ext-diff")
    try:
        patch = git("diff", *options, "HEAD", "--", ".")
        top = git("rev-parse", "--show-toplevel").decode().rstrip("\n")
        untracked = git("ls-files", "--others", "--exclude-standard", "--full-name", "-z", "--", ".")
        for name in sorted(n for n in untracked.decode().split("\0") if n):
            patch += git("-C", top, "diff", *options, "--no-index", "--", "/dev/null", name)
    except (OSError, subprocess.SubprocessError):
        return b""
    return patch
