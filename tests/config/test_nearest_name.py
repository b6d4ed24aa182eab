"""A misspelt name gets an error that suggests the right one."""

import pytest

from neuscale.config import compose_config
from neuscale.config.preset_files import preset_groups
from neuscale.config.set_fields import nearest
from neuscale.errors import UsageError

FIELDS = [
    f"{section}.{field}"
    for section, fields in vars(compose_config([])).items()
    if hasattr(fields, "__dict__")
    for field in vars(fields)
]


def advice(word: str) -> str:
    with pytest.raises(UsageError) as caught:
        compose_config([word])
    assert caught.value.problem.startswith(word.split("=")[0])
    return caught.value.fix


def typos(name: str) -> set[str]:
    """Variants of a name with one letter left out, doubled, replaced or swapped with the next."""
    return {
        wrong
        for at in range(len(name) - 1)
        for wrong in (
            name[:at] + name[at + 1 :],
            name[:at] + name[at] + name[at:],
            name[:at] + "x" + name[at + 1 :],
            name[:at] + name[at + 1] + name[at] + name[at + 2 :],
        )
    } - {name}


@pytest.mark.parametrize("name", [name for name in FIELDS if "beta" not in name])  # beta1 resembles beta2
def test_every_typo_in_a_field_is_answered_with_the_field(name: str) -> None:
    known = FIELDS + sorted(preset_groups())
    for wrong in typos(name):
        assert nearest(wrong, known) == f"Did you mean '{name}'?", wrong


@pytest.mark.parametrize("group", sorted(preset_groups()))
def test_every_typo_in_a_preset_is_answered_with_a_preset(group: str) -> None:
    """At least 95 % are the right one: 'swni_t' is nearest to swin_t, but 'swin_x' equally near to others."""
    known = preset_groups()[group]
    tried = [(name, wrong) for name in known for wrong in typos(name) if wrong not in known and len(name) > 4]
    right = [nearest(wrong, known) == f"Did you mean '{name}'?" for name, wrong in tried]
    assert sum(right) >= 0.95 * len(right)


def test_a_misspelt_preset_is_answered_with_the_preset_and_the_others() -> None:
    others = ", ".join(preset_groups()["model"])
    assert advice("model=swin_nanno") == f"Did you mean 'swin_nano'? Known: {others}."


@pytest.mark.parametrize(
    ("word", "right"),
    [
        ("train.epoch=1", "train.epochs"),
        ("optim.weigth_decay=1", "optim.weight_decay"),
        ("lr=1", "optim.lr"),
        ("train.lr=1", "optim.lr"),
        ("train.seed=1", "run.seed"),
        ("seed=1", "run.seed"),
        ("epochs=1", "train.epochs"),
        ("train.weight_decay=1", "optim.weight_decay"),
        ("modle.name=swin", "model.name"),
        ("modle=swin_t", "model"),
        ("experimnt=quickstart", "experiment"),
        ("model.depths.0=1", "model.depths"),
    ],
)
def test_a_misspelt_field_or_section_is_answered_with_the_field(word: str, right: str) -> None:
    assert advice(word) == f"Did you mean '{right}'?"


def test_a_field_of_another_model_is_told_whose_it_is() -> None:
    """The error names the model that has the field; 'Did you mean model.dropout?' would mislead the user."""
    assert advice("model.pool=mean") == "It belongs to vit: choose such a preset, model=PRESET."
    assert "It belongs to sgd" in advice("optim.nesterov=true")


def test_a_section_is_answered_with_its_fields() -> None:
    assert "train.epochs, train.max_steps" in advice("train=1")


def test_another_architecture_by_name_is_answered_with_the_presets() -> None:
    """`--print-config` shows `name: muon`, so users try to override that first."""
    assert "optim=PRESET, of adamw, muon, sgd" in advice("optim.name=sgd")
    assert compose_config(["optim.name=muon"]) == compose_config([])


def test_what_resembles_nothing_is_answered_with_what_there_is() -> None:
    assert advice("zzzzqqq=1") == "'neuscale train --print-config' shows what there is."
    assert advice("optim=zzz") == "Known: adamw, muon, sgd, target."


def test_a_field_of_another_section_is_answered_with_all_that_it_may_be() -> None:
    assert advice("train.batch_size=8") == "Did you mean 'eval.batch_size' or 'train.global_batch_size'?"
