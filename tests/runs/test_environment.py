"""The recorded environment is that of the machine, in the units of the manifest."""

import hashlib
import os
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuscale import hardware as gpus
from neuscale import units
from neuscale.runs import environment
from neuscale.runs import environment as code
from neuscale.runs.environment import installed_packages
from neuscale.runs.manifest import migrated
from neuscale.units import now

from .conftest import manifest_of


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs of 80 and 24 GiB, which are 85.9 and 25.8 GB."""
    properties = [
        SimpleNamespace(name="NVIDIA H100", total_memory=80 << 30, major=9, minor=0),
        SimpleNamespace(name="NVIDIA L4", total_memory=24 << 30, major=8, minor=9),
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: properties[i])


@pytest.mark.usefixtures("two_gpus")
def test_the_machine_in_gigabytes_and_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "host_memory", lambda: 64 << 30)
    monkeypatch.setattr(environment, "available_cores", lambda: 13)
    monkeypatch.setattr(environment, "driver_version", lambda: "550.1")
    monkeypatch.setattr(environment, "cpu_name", lambda: "EPYC")
    found = environment.machine()
    assert found["memory_gb"] == 68.7, "64 GiB are 68.7 GB"
    assert found["gpus"] == [
        {"name": "NVIDIA H100", "memory_gb": 85.9, "capability": "9.0"},
        {"name": "NVIDIA L4", "memory_gb": 25.8, "capability": "8.9"},
    ]
    assert (found["cores"], found["cpu"], found["driver"]) == (13, "EPYC", "550.1")
    assert (found["host"], found["cuda"]) == (os.uname().nodename, torch.version.cuda)
    assert os.uname().sysname in found["system"]


def test_without_a_gpu_the_list_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpus.gpu_list() == []


def test_the_processor_is_named_by_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor : 0\nmodel\t\t: 85\nmodel name\t: AMD EPYC: 9B14\nmodel name : two\n"
    monkeypatch.setattr(Path, "read_text", lambda _path: text)
    assert environment.cpu_name() == "AMD EPYC: 9B14"
    monkeypatch.setattr(Path, "read_text", lambda _path: "processor : 0\n")
    monkeypatch.setattr(environment.platform, "processor", lambda: "")
    monkeypatch.setattr(environment.platform, "machine", lambda: "aarch64")
    assert environment.cpu_name() == "aarch64"


def test_the_lock_is_that_of_the_checkout_and_of_an_image_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "app" / "neuscale"
    package.mkdir(parents=True)
    monkeypatch.setattr(environment, "IMAGE_RECORD", tmp_path / "image.json")
    monkeypatch.setattr(environment, "PACKAGE", package)
    assert environment.lock_hash() is None
    (tmp_path / "requirements.lock").write_bytes(b"torch==2.15.0\n")
    assert environment.lock_hash() == hashlib.sha256(b"torch==2.15.0\n").hexdigest()
    (tmp_path / "image.json").write_text('{"version": "1", "lock_sha256": "ab"}')
    assert environment.lock_hash() == "ab"


def test_an_image_is_named_by_what_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "IMAGE_RECORD", tmp_path / "image.json")
    (tmp_path / "image.json").write_text('{"version": "1"}')
    for name in ("NEUSCALE_IMAGE", "NEUSCALE_IMAGE_DIGEST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("APPTAINER_CONTAINER", "/images/n.sif")
    assert environment.image() == {
        "version": "1",
        "name": "/images/n.sif",
        "digest": None,
        "sbom_sha256": None,
    }
    monkeypatch.setenv("NEUSCALE_IMAGE", "neuscale:1")
    found = environment.image()
    assert found is not None
    assert found["name"] == "neuscale:1"


def test_each_library_of_the_ops_has_its_own_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    info: dict[str, Any] = {"version": "0.4", "cpu": {"sha256": "aa", "path": "p"}, "cuda": None}
    ops = SimpleNamespace(build_info=lambda: info)
    monkeypatch.setattr(environment, "load_native_ops", lambda: (ops, ""))
    assert environment.ops_build() == {"version": "0.4", "cpu_sha256": "aa", "cuda_sha256": None}
    info["cuda"] = {"sha256": "bb"}
    assert environment.ops_build() == {"version": "0.4", "cpu_sha256": "aa", "cuda_sha256": "bb"}
    monkeypatch.setattr(environment, "load_native_ops", lambda: (None, "not built"))
    assert environment.ops_build() is None


def test_every_part_stands_under_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lock_hash", "image", "machine", "installed_packages"):
        monkeypatch.setattr(environment, name, lambda name=name: name)
    monkeypatch.setattr(environment, "describe_code", lambda: ({"revision": "r"}, b"patch"))
    monkeypatch.setattr(environment, "__version__", "1.2.3")
    fields, patch = environment.environment()
    assert patch == b"patch"
    assert fields == {
        "neuscale": "1.2.3",
        "code": {"revision": "r"},
        "lock_sha256": "lock_hash",
        "image": "image",
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": "installed_packages",
        "machine": "machine",
    }


def test_packages_have_one_spelling_and_the_version_that_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(site: str, name: str, version: str) -> None:
        folder = tmp_path / site / f"{name}-{version}.dist-info"
        folder.mkdir(parents=True)
        text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n\nName: of the text\nVersion: 9\n"
        (folder / "METADATA").write_text(text)

    put("first", "Zope.Interface__X", "1.0")
    put("second", "zope-interface-x", "2.0")
    (tmp_path / "second" / "broken-1.dist-info").mkdir()
    found = [tmp_path / "first", tmp_path / "second"]
    real = environment.distributions
    monkeypatch.setattr(environment, "distributions", lambda: real(path=list(map(str, found))))
    assert installed_packages() == {"zope-interface-x": "1.0"}


@pytest.mark.parametrize(
    ("device", "kind", "threads"),
    [
        ("CPU, 1 thread", "cpu", 1),
        ("CPU, 12 threads", "cpu", 12),
        ("Apple GPU", "mps", None),
        ("T4", "cuda", None),
    ],
)
def test_an_older_manifest_says_in_words_what_todays_says_in_fields(
    device: str, kind: str, threads: int | None
) -> None:
    old = manifest_of("old")
    old = {**old, "machine": {"system": "Linux", "device": device, "processes": 2}, "status": "stopped"}
    del old["version"]
    found = migrated(old)
    machine = found["machine"]
    assert (machine["kind"], machine["threads"], machine["processes"]) == (kind, threads, 2)
    assert (found["exit_code"], found["version"], found["ops"]["build"]) == (None, 2, None)
    assert migrated(old | {"status": "finished"})["exit_code"] == 0
    resumed = migrated(old | {"resumed": [{"time": None, "step": 3}]})["resumed"]
    assert resumed == [{"changed": [], "time": None, "step": 3}]


def test_times_are_in_utc_to_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            moment = cls(2026, 11, 21, 23, 30, 15, 999_999, tzinfo=timezone(timedelta(hours=-2)))
            return moment.astimezone(tz)

    monkeypatch.setattr(units, "datetime", Clock)
    monkeypatch.setenv("TZ", "Etc/GMT+5")
    time.tzset()
    try:
        assert now() == "2026-11-22T01:30:15+00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.fixture
def found_code(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A function that describes code of a known revision, with or without changes and an image."""

    def describe(changed: bool, image: dict[str, Any] | None) -> dict[str, Any]:
        monkeypatch.setattr(code, "code_revision", lambda: {"revision": "r", "changed": changed})
        monkeypatch.setattr(code, "image_record", lambda: image)
        monkeypatch.setattr(code, "uncommitted", lambda _folder: b"a patch")
        monkeypatch.setattr(code, "source_hash", lambda _folder: "5" * 64)
        described, patch = code.describe_code()
        return {**described, "patch": patch}

    return describe


def test_changes_are_kept_where_there_are_any_and_a_checkout(
    found_code: Callable[..., dict[str, Any]],
) -> None:
    sha = hashlib.sha256(b"a patch").hexdigest()
    kept = found_code(changed=True, image=None)
    assert (kept["diff"], kept["patch"]) == ({"file": "code.diff", "sha256": sha}, b"a patch")
    for changed, image in ((False, None), (True, {"revision": "r-dirty"})):
        assert found_code(changed=changed, image=image) == {
            "revision": "r",
            "changed": changed,
            "source_sha256": "5" * 64,
            "diff": None,
            "patch": b"",
        }
