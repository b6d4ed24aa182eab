"""Every preset composes, survives being stored in a run, and is part of what is installed."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from neuscale.config import compose_config, config_from_yaml, config_to_yaml, preset_overrides
from neuscale.config.compose import preset_groups

# What a preset leaves to the command line.
NEEDED = {"model=torchvision": ["model.arch=resnet18"], "model=timm": ["model.arch=resnet18"]}
PRESETS = [f"{group}={name}" for group, names in preset_groups().items() for name in names]


def test_the_groups_and_recipes_that_the_documentation_names_are_there() -> None:
    assert set(preset_groups()) == {"data", "augment", "model", "optim", "tracking", "experiment"}
    assert {"quickstart", "cifar10_swin_t", "tiny_imagenet_vit"} <= set(preset_groups()["experiment"])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_composes_and_is_read_back_as_it_was_stored(preset: str) -> None:
    """A run is resumed from the stored form: a difference would be another training."""
    config = compose_config([preset, *NEEDED.get(preset, [])])
    assert config_from_yaml(config_to_yaml(config), [], "config.yaml") == config


@pytest.mark.parametrize("name", preset_groups()["experiment"])
def test_an_experiment_carries_its_own_name(name: str) -> None:
    assert compose_config([f"experiment={name}"]).experiment == name


@pytest.mark.parametrize("group", ["data", "augment", "model", "optim", "tracking"])
def test_presets_of_a_group_differ(group: str) -> None:
    """One that sets nothing is a name that promises something."""
    words = [f"{group}={name}" for name in preset_groups()[group]]
    composed = [getattr(compose_config([word, *NEEDED.get(word, [])]), group) for word in words]
    assert all(a != b for i, a in enumerate(composed) for b in composed[:i])


def test_without_words_it_is_the_quickstart() -> None:
    assert compose_config([]) == compose_config(["experiment=quickstart"])


@pytest.mark.parametrize(
    "words", [["experiment=cifar10_swin_t", "model=vit_ti4"], ["model=vit_ti4", "experiment=cifar10_swin_t"]]
)
def test_the_command_line_beats_the_experiment(words: list[str]) -> None:
    config = compose_config([*words, "optim.lr=0.5"])
    assert (config.model.name, config.data.name, config.optim.lr) == ("vit", "cifar10", 0.5)


def test_the_last_of_two_words_counts() -> None:
    config = compose_config(["model=swin_b", "train.epochs=3", "model=swin_t", "train.epochs=4"])
    assert (config.model, config.train.epochs) == (compose_config(["model=swin_t"]).model, 4)


def test_without_an_experiment_every_recipe_field_can_be_given() -> None:
    config = compose_config(["experiment=null", "train.epochs=1", "train.global_batch_size=8"])
    assert config.experiment is None
    assert config.data.name == "fashion_mnist"


def test_preset_overrides_are_told_from_field_words() -> None:
    assert preset_overrides(
        ["model=swin_t", "train.epochs=2", "optim.name=adamw", "experiment=quickstart"]
    ) == [
        "model=swin_t",
        "experiment=quickstart",
    ]


def test_composing_changes_no_preset_for_the_next_one() -> None:
    before = compose_config([])
    compose_config(["model.depths=[1]", "model.num_heads=[1]"]).model.weights = "changed"
    before_again = compose_config([])
    before_again.model.depths.append(9)  # type: ignore[attr-defined]
    assert compose_config([]) == before


def test_the_wheel_holds_every_file_of_the_package(tmp_path: Path) -> None:
    """A preset left out, by an ignore file say, is missed only where the package is installed."""
    root = Path(__file__).parents[2]
    package = root / "app" / "neuscale"
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=root, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(package.parent))
        for path in package.rglob("*")
        if path.suffix in (".py", ".yaml")
    }
    assert sum(name.endswith(".yaml") for name in expected) >= len(PRESETS) + 1
    assert expected - inside == set()
