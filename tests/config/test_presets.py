"""Every preset composes, is read back from a run unchanged, and is part of the wheel."""

import dataclasses
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from neuscale.config import compose_config, config_from_yaml, config_to_yaml, preset_overrides
from neuscale.config.compose import annotated_yaml, split_overrides
from neuscale.config.preset_files import field_sources, preset_fields, preset_groups, recipe_presets
from neuscale.config.schema import AugmentConfig, DataConfig, TrainConfig

# Fields that a preset leaves to the command line.
NEEDED = {
    "model=torchvision": ["model.arch=resnet18"],
    "model=timm": ["model.arch=resnet18"],
    "model=target": ["model.target=a.B"],
    "optim=target": ["optim.target=a.B", "optim.lr=0.1"],
}
PRESETS = [f"{group}={name}" for group, names in preset_groups().items() for name in names]


def test_the_groups_and_recipes_that_the_documentation_names_are_there() -> None:
    assert set(preset_groups()) == {"data", "augment", "model", "optim", "tracking", "experiment"}
    assert {"quickstart", "cifar10_swin_t", "tiny_imagenet_vit"} <= set(preset_groups()["experiment"])


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_composes_and_is_read_back_as_it_was_stored(preset: str) -> None:
    """A run is resumed from its stored configuration: a difference would change the training."""
    config = compose_config([preset, *NEEDED.get(preset, [])])
    assert config_from_yaml(config_to_yaml(config), [], "config.yaml") == config


@pytest.mark.parametrize("name", preset_groups()["experiment"])
def test_an_experiment_carries_its_own_name(name: str) -> None:
    assert compose_config([f"experiment={name}"]).experiment == name


@pytest.mark.parametrize("group", ["data", "augment", "model", "optim", "tracking"])
def test_presets_of_a_group_differ(group: str) -> None:
    """Presets of a group differ; one that sets nothing would have a misleading name."""
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
    """A file left out of the wheel, for example by an ignore file, would be missed only when installed."""
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


def test_a_preset_of_the_command_line_comes_with_its_own_values() -> None:
    """A recipe's values for AdamW and its crops do not apply to another optimizer or augmentation preset."""
    alone = {
        word: compose_config(["experiment=null", word, "train.epochs=1", "train.global_batch_size=1"])
        for word in ("augment=none", "optim=sgd", "optim=muon")
    }
    recipe = compose_config(["experiment=tiny_imagenet_vit"])
    for word, preset in alone.items():
        group = word.partition("=")[0]
        config = compose_config(["experiment=tiny_imagenet_vit", word])
        assert getattr(config, group) == getattr(preset, group)
        assert all(
            getattr(config, other) == getattr(recipe, other)
            for other in ("data", "augment", "model", "optim", "train")
            if other != group
        )
    changed = compose_config(["optim=sgd", "experiment=tiny_imagenet_vit", "optim.lr=0.3"])
    assert (changed.optim.lr, changed.optim.warmup_epochs) == (0.3, alone["optim=sgd"].optim.warmup_epochs)


def test_naming_the_preset_that_the_recipe_has_changes_nothing() -> None:
    for name in preset_groups()["experiment"]:
        words = [f"{group}={preset}" for group, preset in recipe_presets(name).items()]
        assert compose_config([f"experiment={name}", *words]) == compose_config([f"experiment={name}"])


@pytest.mark.parametrize("preset", [*PRESETS, "experiment=null"])
def test_every_value_is_from_where_it_is_said_to_be(preset: str) -> None:
    """Each value agrees with its reported source: command line, recipe or schema default."""
    words = [preset, *NEEDED.get(preset, []), "train.epochs=7", "train.global_batch_size=9", "run.seed=3"]
    config, sources = compose_config(words), field_sources(*split_overrides(words))
    schema = {"data": DataConfig("x"), "augment": AugmentConfig(), "train": TrainConfig(7, None, 9)}
    for name, section in dataclasses.asdict(config).items():
        for field, value in section.items() if isinstance(section, dict) else ():
            source = sources.get(f"{name}.{field}", "default")
            if source == "command line":
                assert f"{name}.{field}={value}" in words
            elif source == "default" and name in schema:
                assert value == getattr(schema[name], field)
            elif source.startswith("experiment="):
                assert f"{name}.{field}" in preset_fields("experiment", source.partition("=")[2])
    printed = yaml.safe_load(annotated_yaml(config, sources, "default"))
    assert printed == dataclasses.asdict(config)


def test_a_recipe_whose_preset_is_replaced_is_no_source_of_its_fields() -> None:
    words = ["experiment=cifar10_swin_t", "optim=sgd", "augment=crop_flip", "optim.momentum=0.8"]
    sources = field_sources(*split_overrides(words))
    assert [sources[f"optim.{name}"] for name in ("name", "lr", "warmup_epochs", "momentum")] == [
        *["optim=sgd"] * 3,
        "command line",
    ]
    assert sources["augment.crop_padding"] == "augment=crop_flip"
    assert sources["train.epochs"] == sources["experiment"] == "experiment=cifar10_swin_t"
    assert "optim.schedule" not in sources
