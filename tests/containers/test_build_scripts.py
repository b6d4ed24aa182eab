"""Arguments that the build and measurement scripts give to their programs, recorded by fakes."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from containers.conftest import CHECKOUT
from stand_in import calls, make_programs

if not (CHECKOUT / "scripts" / "build_image.sh").is_file():
    pytest.skip("the scripts are not in this checkout", allow_module_level=True)

GIT = r"""case $1 in
  rev-parse) [[ -z ${NO_GIT:-} ]] || exit 1; echo abc123 ;;
  status) printf "${CHANGED:-}" ;;
  log) echo 1700000000 ;;
esac"""
Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fake docker, git and apptainer; apptainer writes its output file at once."""
    apptainer = (
        'for word in "$@"; do [[ $word != *.partial-* ]] || echo built >"$word"; done; exit "${FAIL:-0}"'
    )
    return make_programs(tmp_path / "bin", monkeypatch, docker="true", git=GIT, apptainer=apptainer)


@pytest.fixture
def script(tmp_path: Path, programs: Path) -> Script:
    """A function that runs a script in a checkout of version 1.2.3."""
    top = tmp_path / "checkout"
    (top / "scripts").mkdir(parents=True)
    (top / "pyproject.toml").write_text('[project]\nname = "neuscale"\nversion = "1.2.3"\n')
    (top / "requirements.lock").write_text("torch==2\n")

    def run(name: str, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        shutil.copy(CHECKOUT / "scripts" / name, top / "scripts")
        env = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path)} | environment
        command = ["bash", str(top / "scripts" / name), *words]
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


LOCK = hashlib.sha256(b"torch==2\n").hexdigest()


def test_an_image_says_what_it_was_built_from(script: Script, programs: Path) -> None:
    done = script("build_image.sh", "neuscale:1", "--target", "test")
    assert done.returncode == 0, done.stderr
    arguments = [f"LOCK_SHA256={LOCK}", "REVISION=abc123", "SOURCE_DATE_EPOCH=1700000000"]
    said = " ".join(f"--build-arg {each}" for each in ["VERSION=1.2.3", *arguments])
    assert calls(programs, "docker") == [f"build --tag neuscale:1 {said} --target test ."]


def test_an_image_of_changed_or_unknown_source_says_so(script: Script, programs: Path) -> None:
    script("build_image.sh", "x", CHANGED=" M file\n")
    script("build_image.sh", "x", NO_GIT="1")
    script("build_image.sh", "x", SOURCE_DATE_EPOCH="5")
    changed, unknown, given = calls(programs, "docker")
    assert "REVISION=abc123-dirty" in changed
    assert "REVISION" not in unknown and "SOURCE_DATE_EPOCH=0" in unknown
    assert "SOURCE_DATE_EPOCH=5" in given


def test_other_base_images_and_a_package_index_reach_the_build(script: Script, programs: Path) -> None:
    settings = {"BASE_IMAGE": "base:1", "DEVEL_IMAGE": "devel:1", "INDEX_FILE": "/etc/index"}
    script("build_image.sh", "x", **settings)
    (call,) = calls(programs, "docker")
    for words in ("BASE_IMAGE=base:1", "DEVEL_IMAGE=devel:1"):
        assert f"--build-arg {words}" in call
    assert "--secret id=index,src=/etc/index" in call


def test_a_proxy_and_its_certificate_reach_the_build(script: Script, programs: Path, tmp_path: Path) -> None:
    """Proxies by name: docker takes their values, which may hold a password, from the environment."""
    settings = {"CA_FILE": "/etc/proxy.pem", "HTTPS_PROXY": "http://me:secret@proxy", "no_proxy": "here"}
    script("build_image.sh", "x", **settings)
    (call,) = calls(programs, "docker")
    assert "--secret id=ca,src=/etc/proxy.pem" in call
    assert "--build-arg HTTPS_PROXY " in call and "--build-arg no_proxy " in call
    assert "secret@" not in call and "HTTP_PROXY " not in call.replace("HTTPS_PROXY ", "")
    script("build_sif.sh", str(tmp_path / "x.sif"), "definition", **settings)
    (call,) = calls(programs, "apptainer")
    assert "--bind /etc/proxy.pem:/run/secrets/ca" in call


def test_a_sif_from_the_definition(script: Script, programs: Path, tmp_path: Path) -> None:
    settings = {
        "BASE_IMAGE": "base:1",
        "INDEX_FILE": "/etc/index",
        "APPTAINER_BUILD": "--fakeroot --disable-cache",
    }
    done = script("build_sif.sh", "n.sif", "definition", **settings)
    assert done.returncode == 0, done.stderr
    top = tmp_path / "checkout"
    assert (top / "n.sif").read_text() == "built\n"
    assert (top / "n.sif").stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in top.glob("*.sif")) == ["n.sif"]
    (call,) = calls(programs, "apptainer")
    words = call.split()
    assert words[:4] == ["build", "--force", "--fakeroot", "--disable-cache"]
    assert words[-1] == "apptainer.def"
    for each in ("BASE_IMAGE=base:1", "REVISION=abc123", "SOURCE_DATE_EPOCH=1700000000"):
        assert f"--build-arg {each}" in call
    assert "--bind /etc/index:/run/secrets/index" in call


def test_a_sif_from_a_docker_image(script: Script, programs: Path, tmp_path: Path) -> None:
    done = script("build_sif.sh", "n.sif", "docker", "neuscale:1")
    assert done.returncode == 0, done.stderr
    (save,) = calls(programs, "docker")
    assert save.startswith("save --output ") and save.endswith("/image.tar neuscale:1")
    archive = save.split()[2]
    (call,) = calls(programs, "apptainer")
    assert call.split()[-1] == f"docker-archive:{archive}"
    assert not Path(archive).parent.exists(), "an archive of gigabytes"
    assert (tmp_path / "checkout" / "n.sif").exists()


def test_a_build_that_fails_leaves_the_image_that_was_there(
    script: Script, programs: Path, tmp_path: Path
) -> None:
    top = tmp_path / "checkout"
    (top / "n.sif").write_text("old\n")
    assert script("build_sif.sh", "n.sif", "definition", FAIL="3").returncode == 3
    assert (top / "n.sif").read_text() == "old\n"
    assert [path.name for path in top.glob("*.sif")] == ["n.sif"]
    usage = script("build_sif.sh", "n.sif", "podman")
    assert usage.returncode == 2 and "build_sif.sh SIF definition|docker" in usage.stderr
    assert [path.name for path in top.glob("*.sif")] == ["n.sif"]


def test_each_lock_has_hashes_for_all_platforms_but_that_of_the_oldest_versions_is_of_lowest(
    script: Script, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_programs(programs, monkeypatch, uv="true")
    assert script("lock.sh", "uv", "--upgrade").returncode == 0
    every = (
        "pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate"
    )
    assert calls(programs, "uv") == [
        f"{every} pyproject.toml --output-file requirements.lock --upgrade",
        f"{every} pyproject.toml --group dev --constraints requirements.lock"
        " --output-file requirements-dev.lock --upgrade",
        f"{every} requirements-build.in --constraints requirements-dev.lock"
        " --output-file requirements-build.lock --upgrade",
        f"{every} pyproject.toml --group test --resolution lowest-direct"
        " --output-file requirements-lowest.lock",
    ]


PYTHON = r"""case "$*" in
  *is_available*) exit "${NO_GPU:-0}" ;;
  *get_device_name*) echo big-2026-01-02 ;;
  *step.py*) exit "${FAIL:-0}" ;;
esac"""


@pytest.mark.parametrize("fail", ["0", "1"])
def test_on_a_gpu_everything_is_measured_and_a_failure_is_the_exit_code(
    script: Script, programs: Path, monkeypatch: pytest.MonkeyPatch, fail: str
) -> None:
    make_programs(programs, monkeypatch, python=PYTHON)
    done = script("test_gpu.sh", "python", "cifar.tgz", FAIL=fail)
    assert done.returncode == int(fail)
    assert ("FAILED: python benchmarks/step.py --device cuda" in done.stdout) == (fail == "1")
    asked = [call for call in calls(programs, "python") if not call.startswith(("-c", "print"))]
    assert asked == [
        "-m pytest -m gpu tests/training/test_on_gpu.py cuda_ops/tests",
        "benchmarks/ops.py --device cuda --output benchmarks/results/big-2026-01-02.json",
        "benchmarks/step.py --device cuda",
        "-m neuscale data prepare cifar10 --source cifar.tgz",
        "benchmarks/checkpoint.py --device cuda",
    ]


def test_without_a_gpu_nothing_is_measured(
    script: Script, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_programs(programs, monkeypatch, python=PYTHON)
    done = script("test_gpu.sh", "python", NO_GPU="1")
    assert done.returncode == 1 and "finds no NVIDIA GPU" in done.stderr
    assert len(calls(programs, "python")) == 1
