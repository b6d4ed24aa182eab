"""A run's stored configuration is read back with overrides, or refused with the name of its file."""

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from neuscale.config import compose_config, config_from_yaml, config_to_yaml
from neuscale.errors import EXIT_USAGE, UsageError

WHERE = "runs/a/config.yaml"
STORED = config_to_yaml(compose_config([]))


def refused(text: str, *words: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        config_from_yaml(text, list(words), WHERE)
    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in caught.value.problem
    return caught.value


def changed(path: str, value: object) -> str:
    stored = yaml.safe_load(STORED)
    *sections, field = path.split(".")
    target = stored
    for section in sections:
        target = target[section]
    target[field] = value
    return yaml.safe_dump(stored)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "3",
        "text",
        "a: b",
        "\x00\x01\x7fELF",
        "%PDF-1.4",
        "<html></html>",
        "a: [",
        "---\na: 1\n---\nb: 2",
        "date: 2020-99-99",
        "a: !!int ''",
        "a: !!python/object/apply:os.getcwd []",
        "[" * 3000,
        "model: {name: swin}",
        "model: {name: [1]}\noptim: {name: adamw}",
        "model: {name: swin}\noptim: {name: adamw}\ndata: [1]",
        "model: {name: swin}\noptim: {name: adamw}\ndata: &a {b: *a}",
        changed("model.name", "resnet"),
        changed("model", "swin"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(text: str) -> None:
    error = refused(text)
    assert error.problem.startswith(f"{WHERE}: not the configuration of a run")
    assert error.fix


@settings(max_examples=80, deadline=None)
@given(st.integers(0, len(STORED) - 1), st.characters())
def test_a_damaged_character_never_ends_in_a_traceback(at: int, character: str) -> None:
    try:
        config_from_yaml(STORED[:at] + character + STORED[at + 1 :], [], WHERE)
    except UsageError as error:
        assert error.problem.startswith(WHERE)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(STORED) - 1))
def test_a_file_cut_short_never_ends_in_a_traceback(length: int) -> None:
    try:
        config_from_yaml(STORED[:length], [], WHERE)
    except UsageError as error:
        assert error.problem.startswith(WHERE)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("train.speed", 1, "train.speed: Key 'speed' not in 'TrainConfig'"),
        ("extra", 1, "extra: Key 'extra' not in 'Config'"),
        ("train.epochs", "many", "train.epochs: Value 'many'"),
        ("train.epochs", 2.5, "train.epochs: Value '2.5'"),
        ("train.epochs", None, "train.epochs: "),
        ("train.epochs", 0, "train.epochs=0: expected at least 1."),
        ("optim.lr", float("nan"), "optim.lr=nan: expected a finite number."),
        ("model.depths", [[1]], "model.depths=[[1]]: expected a list of whole numbers"),
        ("train.precision", "fp8", "train.precision=fp8: expected one of auto"),
        ("train.epochs", "???", "train.epochs has no value."),
        ("train.epochs", "${nothing}", "refers to something else"),
    ],
)
def test_a_stored_value_that_is_not_allowed_is_named_with_the_file(
    path: str, value: object, says: str
) -> None:
    problem = refused(changed(path, value)).problem
    assert problem.startswith(f"{WHERE}: ")
    assert says in problem


def test_field_words_change_what_is_stored_and_nothing_else() -> None:
    config = config_from_yaml(STORED, ["train.epochs=9", "data.source=/a b/c=d.zip"], WHERE)
    expected = compose_config([])
    expected.train.epochs, expected.data.source = 9, "/a b/c=d.zip"
    assert config == expected


@pytest.mark.parametrize("word", ["model=swin_t", "experiment=cifar10_swin_t", "optim=sgd"])
def test_a_preset_cannot_be_changed_in_a_run_that_has_begun(word: str) -> None:
    error = refused(STORED, word)
    assert error.problem == f"{word}: a preset cannot be changed in a run that has started."
    assert "new run" in error.fix


@pytest.mark.parametrize("word", ["train.epochs=0", "train.epoch=1", "train.epochs=x", "+a=1", "word"])
def test_a_wrong_word_is_blamed_on_the_word_and_not_on_the_file(word: str) -> None:
    assert WHERE not in refused(STORED, word).problem


def test_a_field_that_is_newer_than_the_run_has_its_default() -> None:
    """A run of an earlier version can be resumed."""
    stored = yaml.safe_load(STORED)
    del stored["checkpoint"]["keep_last"], stored["tracking"]
    assert config_from_yaml(yaml.safe_dump(stored), [], WHERE) == compose_config([])


@pytest.mark.parametrize(
    ("stored", "trackers", "project", "options"),
    [
        ({}, ["tensorboard"], None, {}),
        ({"tensorboard": False}, [], None, {}),
        ({"wandb": True, "wandb_project": "pets"}, ["tensorboard", "wandb"], "pets", {}),
        (
            {"tensorboard": False, "wandb": True, "wandb_mode": "offline", "wandb_tags": ["a"]},
            ["wandb"],
            None,
            {"wandb": {"tags": ["a"], "mode": "offline"}},
        ),
        ({"wandb": False, "wandb_mode": "offline", "wandb_entity": None}, ["tensorboard"], None, {}),
    ],
)
def test_the_trackers_of_an_older_run_are_kept(
    stored: dict[str, object], trackers: list[str], project: str | None, options: dict[str, object]
) -> None:
    """Earlier versions had separate fields for each tracker."""
    text = changed("tracking", {"sample_images": 3, **stored})
    tracking = config_from_yaml(text, [], WHERE).tracking
    assert (tracking.trackers, tracking.project, tracking.options) == (trackers, project, options)
    assert tracking.sample_images == 3
