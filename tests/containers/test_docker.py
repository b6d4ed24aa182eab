"""The Docker image trains as any user, without network and with only /tmp writable."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from containers.conftest import CHECKOUT, SHORT, Command, doctor, run

pytestmark = pytest.mark.containers

CLOSED = ("--network", "none", "--read-only", "--tmpfs", "/tmp")


def test_trains_without_network_name_or_writable_image(docker: Command) -> None:
    """Some clusters enforce this, and users may be offline."""
    said = docker(*SHORT, "--json", options=CLOSED)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout)["status"] == "finished"


def test_compiles_without_network_name_or_writable_image(docker: Command) -> None:
    """torch.compile needs a compiler, Python's headers and a folder for its cache."""
    code = "import torch; print(torch.compile(lambda x: (x.sin() + 1).sum())(torch.zeros(3)).item())"
    said = docker(
        "python", "-c", code, options=(*CLOSED, "--tmpfs", "/tmp:exec", "--entrypoint", "with-environment")
    )
    assert said.stdout.strip() == "3.0", said.stderr


def test_what_it_writes_belongs_to_the_user(image: str, tmp_path: Path) -> None:
    """Only an administrator could remove files of root from a user's folder."""
    runs = tmp_path / "runs"
    runs.mkdir()
    os.chown(runs, 12345, 12345) if os.getuid() == 0 else None
    user = "12345:12345" if os.getuid() == 0 else f"{os.getuid()}:{os.getgid()}"
    said = run("docker", "run", "--rm", "--user", user, "--volume", f"{runs}:/runs", image, *SHORT)
    assert said.returncode == 0, said.stderr
    owners = {f"{path.stat().st_uid}:{path.stat().st_gid}" for path in runs.rglob("*")}
    assert owners == {user}


def test_the_package_and_the_ops_of_the_image(docker: Command) -> None:
    found = doctor(docker)
    assert found["problems"] == []
    assert found["data_sets"] == ["fashion_mnist"]
    assert found["native_ops"]["cuda"]["sha256"]
    assert {"uv", "cmake", "ninja", "pip", "pytest", "hatchling"}.isdisjoint(found["packages"])
    locked = {
        line.split("==")[0]
        for line in (CHECKOUT / "requirements.lock").read_text().splitlines()
        if "==" in line and "sys_platform" not in line and "python_version" not in line
    }
    assert locked <= set(found["packages"]) | {"neuscale"}


def test_labels_and_bill_of_materials_say_what_is_in_it(image: str, docker: Command) -> None:
    labels = json.loads(
        run("docker", "image", "inspect", "--format", "{{json .Config.Labels}}", image).stdout
    )
    revision = run("git", "-C", str(CHECKOUT), "rev-parse", "HEAD").stdout.strip()
    found = doctor(docker)
    assert labels["org.opencontainers.image.version"] == found["neuscale"]
    assert labels["org.opencontainers.image.revision"].removesuffix("-dirty") == found["code"]["revision"]
    assert labels["neuscale.lock.sha256"] == found["image"]["lock_sha256"]
    assert found["code"]["revision"] == revision
    said = docker(
        "cat", "/opt/neuscale/share/neuscale/sbom.spdx.json", options=("--entrypoint", "with-environment")
    )
    bill = json.loads(said.stdout)
    of_python = {
        package["name"]: package["versionInfo"]
        for package in bill["packages"]
        if package["externalRefs"][0]["referenceLocator"].startswith("pkg:pypi/")
    }
    assert of_python == found["packages"]
    hashes = {
        item["fileName"]: checksum["checksumValue"]
        for item in bill["files"]
        for checksum in item["checksums"]
        if checksum["algorithm"] == "SHA256"
    }
    for library in ("cpu", "cuda"):
        described = found["native_ops"][library]
        assert hashes[described["path"]] == described["sha256"]


@pytest.mark.parametrize("command", [["doctor"], list(SHORT)])
def test_a_runs_folder_that_cannot_be_written(docker: Command, tmp_path: Path, command: list[str]) -> None:
    said = docker(*command, options=("--volume", f"{tmp_path}:/runs:ro"))
    assert said.returncode in (1, 2)
    assert "/runs" in said.stderr
    assert "Traceback" not in said.stderr


def test_nothing_private_reaches_the_builder(image: str, tmp_path: Path) -> None:
    """Data, runs, Git history, keys and .env stay out of the build context, even for `COPY .`."""
    del image  # only needed to skip without a Docker engine
    context = tmp_path / "context"
    for name in (".env", "data/raw/secret", "runs/secret", ".git/config", "app/.env", "app/a.pyc", "key.pem"):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text("secret")
    (context / "app" / "kept.py").write_text("")
    (context / ".dockerignore").write_bytes((CHECKOUT / ".dockerignore").read_bytes())
    (context / "Dockerfile").write_text("FROM scratch\nCOPY . /\n")
    out = tmp_path / "out"
    built = run("docker", "build", "--output", f"type=local,dest={out}", str(context))
    assert built.returncode == 0, built.stderr
    assert [str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()] == ["app/kept.py"]


def test_stopped_it_saves_and_says_how_to_go_on(image: str, tmp_path: Path) -> None:
    """`docker stop` sends SIGTERM to the first process and waits for it."""
    name = f"neuscale-test-{os.getpid()}"
    words = ("docker", "run", "--name", name, "--stop-timeout", "120", image, "train", "run.device=cpu")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            while "training:" not in process.stderr.readline():
                assert process.poll() is None
            run("docker", "stop", name)
            said = process.stderr.read()
            assert process.wait(timeout=60) == 75, said
        finally:
            run("docker", "rm", "--force", "--volumes", name)
    assert "everything is saved" in said
