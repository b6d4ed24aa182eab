"""docs/training.md states for every field whether it may change on resume, and the code agrees."""

import dataclasses
import re
from pathlib import Path

import pytest

from neuscale.config import Config, compose_config
from neuscale.config import schema as schemas
from neuscale.errors import UsageError
from neuscale.runs.differences import check_same_run
from neuscale.runs.folder import RunFolder, create_run

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"
pytestmark = pytest.mark.skipif(not DOCUMENT.is_file(), reason="the manual is not here, as in an image")
VARIANTS = {
    "model": [schemas.SwinConfig, schemas.ViTConfig, schemas.TorchvisionConfig, schemas.TimmConfig],
    "optim": [schemas.AdamWConfig, schemas.SGDConfig, schemas.MuonConfig],
}


def rows() -> dict[str, str]:
    """Return the entries of the table, by field or `section.*`."""
    text = DOCUMENT.read_text().partition("## What may change")[2].partition("\n## ")[0]
    found: dict[str, str] = {}
    for line in re.findall(r"^\| (`.*?) \| (.*?) \|$", text, re.MULTILINE):
        for name in re.findall(r"`([\w.*]+)`", line[0]):
            assert name not in found, name
            found[name] = line[1]
    return found


def fields() -> list[str]:
    names = []
    for section in dataclasses.fields(Config):
        if not dataclasses.is_dataclass(section.type):
            names.append(section.name)
            continue
        kinds = VARIANTS.get(section.name, [section.type])
        inside = {field.name: None for kind in kinds for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        names += [f"{section.name}.{name}" for name in inside]
    return names


def said_of(field: str) -> str | None:
    table = rows()
    return table.get(field, table.get(f"{field.partition('.')[0]}.*"))


def test_every_field_has_a_row_and_every_row_a_field() -> None:
    assert [field for field in fields() if said_of(field) is None] == []
    known = {*fields(), *(f"{field.partition('.')[0]}.*" for field in fields())}
    assert set(rows()) - known == set()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> RunFolder:
    monkeypatch.setenv("NEUSCALE_RUNS", str(tmp_path))
    return create_run(compose_config(["run.name=x"]))


@pytest.mark.parametrize("field", [name for name in fields() if "." in name and name != "run.name"])
def test_what_is_refused_is_called_that_and_nothing_else(run: RunFolder, field: str) -> None:
    config = run.config()
    section, name = field.split(".")
    if not hasattr(getattr(config, section), name):
        pytest.skip("a field of another model or optimizer")
    setattr(getattr(config, section), name, "something else")
    said = said_of(field)
    assert said is not None
    if said.startswith("refused"):
        with pytest.raises(UsageError, match=re.escape(f"{field} cannot change in a run that has started")):
            check_same_run(config, run)
    else:
        check_same_run(config, run)
