"""The Docker image trains as any user, without network and with only /tmp writable."""

import http.server
import json
import os
import shutil
import ssl
import subprocess
import threading
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


def test_the_certificate_of_a_proxy_is_trusted_in_a_build_and_not_kept(image: str, tmp_path: Path) -> None:
    """A server on loopback, whose certificate only the build secret `ca` makes trusted."""
    certificate, key = tmp_path / "ca.pem", tmp_path / "key.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    request = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    made = run(*request, "-addext", names, "-keyout", str(key), "-out", str(certificate))
    assert made.returncode == 0, made.stderr
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    build = tmp_path / "build"
    build.mkdir()
    shutil.copy(CHECKOUT / "scripts/image/index.sh", build)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ask = (
            f"import urllib.request as u; print(u.urlopen('https://localhost:{server.server_port}/').status)"
        )
        (build / "Dockerfile").write_text(
            f'FROM {image}\nUSER 0\nSHELL ["/bin/bash", "-ec"]\n'
            "RUN --mount=type=secret,id=ca --mount=type=bind,source=index.sh,target=/src/index.sh "
            f'. /src/index.sh; python -c "{ask}" && test "$PIP_CERT" = "$SSL_CERT_FILE"\n'
        )
        command = ["docker", "build", "--network", "host", "--tag", f"{image}-ca", str(build)]
        refused = run(*command)
        trusted = run(*command, "--secret", f"id=ca,src={certificate}")
        server.shutdown()
    assert refused.returncode != 0 and "CERTIFICATE_VERIFY_FAILED" in refused.stderr
    assert trusted.returncode == 0, trusted.stderr
    kept = run("docker", "run", "--rm", "--entrypoint", "sh", f"{image}-ca", "-c", "ls /dev/shm; env")
    assert "ca-certificates" not in kept.stdout and "SSL_CERT_FILE" not in kept.stdout
    run("docker", "image", "rm", f"{image}-ca")
