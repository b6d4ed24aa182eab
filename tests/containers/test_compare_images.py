"""Differences between two image builds are reported by path; no container engine is needed."""

import importlib.util
import io
import tarfile
from types import ModuleType

import pytest

from containers.conftest import CHECKOUT

SCRIPT = CHECKOUT / "scripts" / "compare_images.py"
if not SCRIPT.is_file():
    pytest.skip("the scripts are not in this checkout", allow_module_level=True)


@pytest.fixture
def comparison() -> ModuleType:
    """The script, imported as a module."""
    spec = importlib.util.spec_from_file_location("compare_images", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def image(**changes: tuple[str, object]) -> io.BytesIO:
    """Tar archive of a small image; `changes` alters or removes an entry, for example a=("mode", 0o600)."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as tar:
        for number, name in enumerate(["etc", "a", "b", "link"]):
            member = tarfile.TarInfo(f"root/{name}")
            member.mtime = number
            content = b"content of " + name.encode()
            if name == "etc":
                member.type = tarfile.DIRTYPE
            if name == "link":
                member.type, member.linkname = tarfile.SYMTYPE, "a"
            attribute, value = changes.get(name, ("", None))
            if attribute == "absent":
                continue
            if attribute == "content":
                content = bytes(str(value), "ascii")
            elif attribute:
                setattr(member, attribute, value)
            member.size = len(content) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(content) if member.isreg() else None)
    target.seek(0)
    return target


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"a": ("content", "content of x")}, "root/a (content)"),
        ({"b": ("mode", 0o600)}, "root/b (mode)"),
        ({"etc": ("uid", 5)}, "root/etc (owner)"),
        ({"link": ("linkname", "b")}, "root/link (content)"),
        ({"b": ("absent", None)}, "root/b (only in the first)"),
    ],
)
def test_one_difference_is_one_line(
    comparison: ModuleType, changes: dict[str, tuple[str, object]], said: str
) -> None:
    here, there = comparison.entries(image()), comparison.entries(image(**changes))
    assert comparison.differences(here, there) == [said]


def test_times_do_not_count(comparison: ModuleType) -> None:
    here, there = comparison.entries(image()), comparison.entries(image(a=("mtime", 77)))
    assert comparison.differences(here, there) == []
    assert {entry.kind for entry in here.values()} == {"folders", "files", "links"}
