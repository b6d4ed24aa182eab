"""Arguments that the scripts give to docker and apptainer, recorded by fakes, and Compose settings."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from containers.conftest import CHECKOUT
from stand_in import calls, make_programs

if not (CHECKOUT / "docker-compose.yml").is_file():
    pytest.skip("the recipes are not in this checkout", allow_module_level=True)

USER = f"{os.getuid()}:{os.getgid()}"
Script = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fake docker and apptainer, and an nvidia-smi that lists a GPU."""
    docker = 'if [[ $1 == image ]]; then echo "sha256:abc"; fi'
    found = make_programs(tmp_path / "bin", monkeypatch, docker=docker, apptainer="true")
    return make_programs(found, monkeypatch, **{"nvidia-smi": "echo 'GPU 0: Big'"})


@pytest.fixture
def script(tmp_path: Path, programs: Path) -> Script:
    """A function that runs a script in a checkout with nothing else but .env.example."""
    top = tmp_path / "checkout"
    (top / "scripts").mkdir(parents=True)
    shutil.copy(CHECKOUT / ".env.example", top)

    def run(name: str, *words: str, **environment: str) -> "subprocess.CompletedProcess[str]":
        for each in (name, "container_user.sh"):
            shutil.copy(CHECKOUT / "scripts" / each, top / "scripts")
        env = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(tmp_path)} | environment
        return subprocess.run(
            ["bash", str(top / "scripts" / name), *words],
            env=env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return run


def test_a_command_in_docker_has_the_users_folders_number_and_gpus(
    script: Script, tmp_path: Path, programs: Path
) -> None:
    done = script("train_in.sh", "docker", "neuscale:1", "train", "run.name=a b", NEUSCALE_RUNS="results")
    assert done.returncode == 0, done.stderr
    top = tmp_path / "checkout"
    assert calls(programs, "docker") == [
        "info",
        "image inspect --format {{.Id}} neuscale:1",
        f"run --rm --init --shm-size 2g --stop-timeout 120 --user {USER}"
        f" --volume {top}/data:/data --volume {top}/results:/runs"
        " --env NEUSCALE_IMAGE=neuscale:1 --env NEUSCALE_IMAGE_DIGEST=sha256:abc --gpus all"
        " neuscale:1 train run.name=a b",
    ]
    assert (top / "data").is_dir() and (top / "results").is_dir(), "docker would make them as root"


def test_a_command_in_apptainer_has_the_same(script: Script, tmp_path: Path, programs: Path) -> None:
    done = script("train_in.sh", "apptainer", "n.sif", "eval", "x", NEUSCALE_DATA=f"{tmp_path}/big")
    assert done.returncode == 0, done.stderr
    data, runs = f"{tmp_path}/big", f"{tmp_path}/checkout/runs"
    environment = f"NEUSCALE_DATA={data},NEUSCALE_RUNS={runs}"
    assert calls(programs, "apptainer") == [
        f"run --bind {data} --bind {runs} --env {environment} --nv n.sif eval x"
    ]


def test_without_a_gpu_none_is_asked_for(
    script: Script, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_programs(programs, monkeypatch, docker="exit 7", **{"nvidia-smi": "exit 9"})
    assert script("train_in.sh", "docker", "neuscale:1", "doctor").returncode == 7
    *_, call = calls(programs, "docker")
    assert "--gpus" not in call and "DIGEST" not in call
    script("train_in.sh", "apptainer", "n.sif", "doctor")
    assert "--nv" not in calls(programs, "apptainer")[0]


def test_how_the_script_is_used_is_said(script: Script, programs: Path) -> None:
    done = script("train_in.sh", "podman", "x", "train")
    assert done.returncode == 2
    assert "train_in.sh docker|apptainer IMAGE-OR-SIF" in done.stderr
    assert script("train_in.sh", "docker").returncode != 0
    assert calls(programs, "docker") == []


def with_folders(programs: Path, monkeypatch: pytest.MonkeyPatch, **sources: str) -> None:
    """Make a fake docker whose `compose config` prints these folders as the volumes of `train`."""
    volumes = [
        {"type": "bind" if "/" in source else "volume", "source": source, "target": f"/{target}"}
        for target, source in sources.items()
    ]
    told = programs / "told.json"
    told.write_text(json.dumps({"services": {"train": {"volumes": volumes}}}, indent=2))
    make_programs(programs, monkeypatch, docker=f'[[ $* != *" config "* ]] || cat {told}')


def test_compose_has_this_users_number_and_folders_of_this_user(
    script: Script, tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "checkout"
    with_folders(programs, monkeypatch, data=f"{top}/data", runs=f'{top}/it\'s "mine" \\ ~')
    done = script("compose.sh", "up", "--detach")
    assert done.returncode == 0, done.stderr
    settings = dict(
        line.split("=", 1)
        for line in (top / ".env").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    assert f"{settings['NEUSCALE_UID']}:{settings['NEUSCALE_GID']}" == USER
    for folder in (top / "data", top / 'it\'s "mine" \\ ~'):
        assert folder.is_dir()
    compose = "compose --file docker-compose.yml"
    assert calls(programs, "docker") == [
        "info",
        f"{compose} config --format json",
        f"{compose} up --detach",
    ]


@pytest.mark.parametrize(
    ("info", "user"),
    [
        (" Security Options:\n  seccomp\n   Profile: builtin\n  rootless\n  cgroupns", "0:0"),
        ("    apparmorEnabled: false\n    rootless: true\n    seccompEnabled: true", "0:0"),
        ("    rootless: false\n    seccompEnabled: true", USER),
        (" Security Options:\n  seccomp\n Name: rootless-node", USER),
    ],
    ids=["rootless Docker", "rootless Podman", "Podman as root", "Docker"],
)
def test_without_roots_rights_the_containers_root_is_the_user(
    script: Script, tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, info: str, user: str
) -> None:
    """Any other number would be a subordinate id, which may not write to the user's folders."""
    (programs / "info").write_text(info + "\n")
    # Line by line, as docker does, and more of them than a pipe's reader waits for.
    rest = 'for i in $(seq 200); do echo "  line $i" || exit 141; done'
    told = f'case $1 in info) cat {programs}/info; {rest} ;; compose) echo "{{}}" ;; esac'
    make_programs(programs, monkeypatch, docker=told)
    assert script("train_in.sh", "docker", "neuscale:1", "train").returncode == 0
    assert f" --user {user} " in calls(programs, "docker")[-1]
    assert script("compose.sh", "up").returncode == 0
    uid, _, gid = user.partition(":")
    written = (tmp_path / "checkout" / ".env").read_text()
    assert f"NEUSCALE_UID={uid}\nNEUSCALE_GID={gid}\n" in written


def test_compose_keeps_the_settings_that_are_there_and_asks_for_no_gpu_without_one(
    script: Script, tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "checkout"
    with_folders(programs, monkeypatch, data="named", runs=f"{top}/mine", project=f"{top}/not made")
    make_programs(programs, monkeypatch, **{"nvidia-smi": "exit 9"})
    own = "NEUSCALE_UID=7\nNEUSCALE_DATA_VOLUME=named\nNEUSCALE_RUNS_VOLUME=./mine\n"
    (top / ".env").write_text(own)
    assert script("compose.sh", "down").returncode == 0
    assert (top / ".env").read_text() == own
    assert sorted(path.name for path in top.iterdir() if path.is_dir()) == ["mine", "scripts"]
    files = "--file docker-compose.yml --file docker-compose.cpu.yml"
    assert calls(programs, "docker") == [f"compose {files} config --format json", f"compose {files} down"]
    make_programs(programs, monkeypatch, docker="echo 'line 3: not a setting' >&2; exit 15")
    done = script("compose.sh", "up")
    assert done.returncode == 15 and "line 3: not a setting" in done.stderr


UV = 'if [[ $1-$2 == pip-install ]]; then exit "${INSTALL:-0}"; fi'


@pytest.mark.parametrize("install", ["0", "4"])
def test_the_environment_is_made_from_the_locked_requirements_and_with_hashes(
    script: Script, tmp_path: Path, programs: Path, monkeypatch: pytest.MonkeyPatch, install: str
) -> None:
    python = f'if [[ $1 == -m ]]; then mkdir -p "$3/bin"; cp {programs}/python "$3/bin/python"; fi'
    make_programs(programs, monkeypatch, uv=UV, python=python)
    done = script("setup.sh", "env", PYTHON=f"{programs}/python", INSTALL=install)
    assert done.returncode == int(install), done.stderr
    assert "-m venv env" in calls(programs, "python")
    assert calls(programs, "uv") == [
        "pip sync --quiet --compile-bytecode --python env/bin/python --require-hashes"
        " --build-constraints requirements-build.lock requirements-dev.lock",
        "pip install --quiet --python env/bin/python --no-deps --no-build-isolation --editable .",
    ]
    script("setup.sh", "env", PYTHON=f"{programs}/python")
    assert calls(programs, "python").count("-m venv env") == 1, "one that works is kept"


def test_without_a_python_it_is_said_which(script: Script) -> None:
    done = script("setup.sh", "env", PYTHON="")
    assert done.returncode == 1
    assert "3.11, 3.12 or 3.13" in done.stderr


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["services"]
    return found


# To download data behind a proxy.
NETWORK = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")),
    **dict.fromkeys(("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"), "${CA_FILE:+/run/ca.pem}"),
}


def test_a_training_has_time_to_save_memory_to_share_and_goes_on(services: dict[str, Any]) -> None:
    train = services["train"]
    assert train["stop_grace_period"] == "${STOP_GRACE_PERIOD:-2m}"
    assert train["shm_size"] == "${SHM_SIZE:-2g}"
    assert train["command"].split() == [
        *("train", "experiment=${EXPERIMENT:-quickstart}", "run.name=${RUN_NAME:-compose}", "--resume"),
        *("${GPUS:+--gpus}", "${GPUS:-}", "${TRAIN_ARGS:-}"),
    ]
    assert train["depends_on"] == {"prepare": {"condition": "service_completed_successfully"}}
    (gpus,) = train["deploy"]["resources"]["reservations"]["devices"]
    assert gpus == {"driver": "nvidia", "count": "${GPU_COUNT:-all}", "capabilities": ["gpu"]}
    assert train["environment"] == {
        "NEUSCALE_CONFIG_DIR": "${NEUSCALE_PROJECT:+/project/conf}",
        "NEUSCALE_IMAGE": "${NEUSCALE_IMAGE:-neuscale:0.1.0}",
        # no value: passed on from the host's environment if it is set there
        **dict.fromkeys(("CUDA_VISIBLE_DEVICES", "WANDB_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_URI")),
        **NETWORK,
    }


def test_each_service_is_the_users_on_the_same_folders(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["user"] == "${NEUSCALE_UID:-1000}:${NEUSCALE_GID:-1000}", name
        assert service["init"] is True, f"{name}: signals do not reach it"
        assert service["image"] == "${NEUSCALE_IMAGE:-neuscale:0.1.0}", name
    label = "${SELINUX_LABEL:-}"
    both = [f"${{NEUSCALE_DATA_VOLUME:-data}}:/data{label}", f"${{NEUSCALE_RUNS_VOLUME:-runs}}:/runs{label}"]
    both += ["${NEUSCALE_PROJECT:-project}:/project:ro", "${CA_FILE:-/dev/null}:/run/ca.pem:ro"]
    assert services["prepare"]["environment"] == NETWORK
    for name in ("prepare", "train", "eval", "shell"):
        assert services[name]["volumes"] == both
    assert services["tensorboard"]["volumes"] == [
        "${NEUSCALE_RUNS_VOLUME:-runs}:/runs:ro${SELINUX_LABEL:+,z}"
    ]
    assert services["prepare"]["command"] == "data prepare ${DATASET:-fashion_mnist}"
    assert services["eval"]["command"] == "eval ${RUN_NAME:-compose}"
    assert (services["eval"]["profiles"], services["shell"]["profiles"]) == (["eval"], ["shell"])


def test_curves_are_shown_to_this_machine_only(services: dict[str, Any]) -> None:
    board = services["tensorboard"]
    assert board["ports"] == ["127.0.0.1:${TENSORBOARD_PORT:-6006}:6006"]
    words = board["command"].split()
    assert words[words.index("--port") + 1] == "6006"
    assert words[words.index("--logdir") + 1] == "/runs"
    assert "http://127.0.0.1:6006/" in board["healthcheck"]["test"][-1]
