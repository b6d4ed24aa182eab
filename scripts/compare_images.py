"""Compare two Docker images file by file (content, kind, mode, owner), and their configuration.

    python scripts/compare_images.py IMAGE OTHER

File times are ignored: they are those of the build, and the only difference that two builds of one
commit may have. The exit code is 1 if anything else differs.
"""

import hashlib
import json
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple

_CHUNK = 1 << 20


class Entry(NamedTuple):
    """Properties of a path in an image."""

    kind: str
    mode: str
    owner: str
    content: str  # SHA-256 of a file, target of a link


def main(arguments: list[str]) -> int:
    """Print the differences and return the exit code."""
    if len(arguments) != 2:
        print(__doc__)
        return 2
    one, other = arguments
    settings = [_configuration(image) for image in arguments]
    problems = [f"configuration: {name}" for name in settings[0] if settings[0][name] != settings[1][name]]
    with _exported(one) as first, _exported(other) as second:
        here, there = entries(first), entries(second)
    problems += differences(here, there)
    kinds = Counter(entry.kind for entry in here.values())
    print(f"{one}: " + ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common()))
    print(f"{other}: the same but for {len(problems)} of them")
    for line in problems:
        print(f"  {line}")
    return 1 if problems else 0


def entries(archive: IO[bytes]) -> dict[str, Entry]:
    """Entries of all paths in a tar archive, read as a stream."""
    found = {}
    with tarfile.open(fileobj=archive, mode="r|") as tar:
        for member in tar:
            kind, content = "others", ""
            if member.isreg():
                reader = tar.extractfile(member)
                assert reader is not None  # a regular file has contents
                kind, content = "files", _sha256(reader)
            elif member.isdir():
                kind = "folders"
            elif member.issym() or member.islnk():
                kind, content = "links", member.linkname
            owner = f"{member.uid}:{member.gid}"
            found[member.name.removeprefix("./")] = Entry(kind, f"{member.mode:o}", owner, content)
    return found


def differences(here: dict[str, Entry], there: dict[str, Entry]) -> list[str]:
    """Differences, one line for each path."""
    found = {
        path: _difference(here.get(path), there.get(path)) for path in sorted(here.keys() | there.keys())
    }
    return [f"{path} ({what})" for path, what in found.items() if what is not None]


def _difference(here: Entry | None, there: Entry | None) -> str | None:
    if here is None or there is None:
        return "only in the second" if here is None else "only in the first"
    names = [name for name, a, b in zip(Entry._fields, here, there, strict=True) if a != b]
    return ", ".join(names) or None


def _sha256(reader: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while chunk := reader.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _configuration(image: str) -> dict[str, Any]:
    """Architecture and configuration of an image: command, environment, labels, user, …"""
    said = subprocess.run(["docker", "image", "inspect", image], capture_output=True, check=True)
    found: dict[str, Any] = json.loads(said.stdout)[0]
    return {"Architecture": found["Architecture"], **found["Config"]}


@contextmanager
def _exported(image: str) -> Iterator[IO[bytes]]:
    """Files of the image as a tar stream."""
    created = subprocess.run(["docker", "create", image], capture_output=True, check=True, text=True)
    container = created.stdout.strip()
    try:
        with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            yield process.stdout
    finally:
        subprocess.run(["docker", "rm", "--volumes", container], stdout=subprocess.DEVNULL, check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
