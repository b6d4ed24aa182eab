"""`field=value` overrides: values are set as written, and a mistake is one clear message."""

import math
import typing

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from neuscale.cli import run as command
from neuscale.config import compose_config, config_from_yaml, config_to_yaml
from neuscale.config.preset_files import preset_groups
from neuscale.errors import EXIT_USAGE, UsageError

STORED = config_to_yaml(compose_config([]))


def value_of(word: str) -> object:
    key = word.partition("=")[0]
    found: object = compose_config([word])
    for part in key.split("."):
        found = getattr(found, part)
    return found


def refused(*words: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        compose_config(list(words))
    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in caught.value.problem
    return caught.value


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("train.epochs=7", 7),
        ("optim.lr=1e-3", 1e-3),
        ("optim.lr=2", 2.0),
        ("optim.lr='0.5'", 0.5),
        ("model.gradient_checkpointing=true", True),
        ("model.gradient_checkpointing=off", False),
        ("model.gradient_checkpointing=1", True),
        ("tracking.trackers=[]", []),
        ("model.depths=[1, 2,3]", [1, 2, 3]),
        ("optim.clip_grad_norm=null", None),
        ("train.max_steps=3", 3),
        ("data.source=null", None),
        ("data.source='null'", "null"),
        ("run.seed=9223372036854775807", 2**63 - 1),
        ("model.pool=mean", "mean"),
    ],
)
def test_a_value_has_its_fields_type(word: str, value: object) -> None:
    words = ["model=vit_ti4", word] if "pool" in word else [word]
    section, _, field = word.partition("=")[0].partition(".")
    found = getattr(getattr(compose_config(words), section), field)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        "a b.pth",
        "/data/a b/c=d.pth",
        "~/weights.pth",
        "/größe/画像.zip",
        "C:\\images\\new",
        "/a(1).pth",
        "a,b",
        "[a]",
        "{a}",
        "https://host/x?y=1&z=2#top",
        "it's",
        "007",
        "1.10",
        "2024_01",
        "1e3",
        "true",
        "#1",
        "",
    ],
)
def test_text_is_taken_as_it_is_written(text: str) -> None:
    """Paths need no quoting beyond the shell's, and a run named 1.10 is not named 1.1."""
    for word in (f"data.source={text}", f'data.source="{text}"', f"data.source='{text}'"):
        assert value_of(word) == text or "'" in text
    assert compose_config([f"run.name={text}"]).run.name == text


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=12))
@example("\udc80")
@example("\\'\"")
def test_any_text_survives_the_command_line_and_the_runs_file(text: str) -> None:
    assume("${" not in text and text not in ("null", "???"))
    assume(not (len(text) > 1 and text[0] == text[-1] and text[0] in "'\""))
    config = config_from_yaml(STORED, [f"data.source={text}"], "config.yaml")
    assert config.data.source == text
    assert config_from_yaml(config_to_yaml(config), [], "config.yaml") == config


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("train.epochs=two", "a whole number"),
        ("train.epochs=1.5", "a whole number"),
        ("train.epochs=true", "a whole number"),
        ("train.epochs=null", "a whole number"),
        ("train.epochs=[1]", "a whole number"),
        ("train.epochs=", "a whole number"),
        ("train.max_steps=none", "a whole number or null"),
        ("optim.lr=fast", "a number"),
        ("optim.lr=true", "a number"),
        ("optim.lr={a: 1}", "a number"),
        ("optim.clip_grad_norm=no", "a number or null"),
        ("model.gradient_checkpointing=maybe", "true or false"),
        ("model.gradient_checkpointing=2", "true or false"),
        ("model.gradient_checkpointing=0.5", "true or false"),
        ("data.name=null", "text"),
        ("model.depths=2", "a list of whole numbers, as in [2,2]"),
        ("model.depths=[1.5]", "a list of whole numbers, as in [2,2]"),
        ("model.depths=[1,null]", "a list of whole numbers, as in [2,2]"),
        ("model.depths={a: 1}", "a list of whole numbers, as in [2,2]"),
        ("model.depths=[2", "a list of whole numbers, as in [2,2]"),
        ("model.depths=" + "[" * 400 + "]" * 400, "a list of whole numbers, as in [2,2]"),
        ("run.seed=" + "9" * 5000, "a whole number"),
    ],
)
def test_a_value_of_the_wrong_type_is_told_what_is_expected(word: str, expected: str) -> None:
    assert refused(word).problem == f"{word}: expected {expected}."


def test_a_list_of_lists_is_not_a_list_of_numbers() -> None:
    assert "expected a list of whole numbers" in refused("model.depths=[[1]]").problem


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("train.epochs=0", "expected at least 1"),
        ("run.seed=-1", "expected at least 0"),
        ("optim.lr=0", "expected more than 0"),
        ("optim.lr=-1e-3", "expected more than 0"),
        ("optim.lr=nan", "expected a finite number"),
        ("optim.lr=inf", "expected a finite number"),
        ("model.dropout=1", "expected at least 0 and less than 1"),
        ("augment.horizontal_flip=1.01", "expected at least 0 and at most 1"),
        ("model.depths=[2,0]", "model.depths=0: expected at least 1"),
        ("train.precision=fp8", "expected one of auto, fp32, tf32, bf16, fp16"),
        ("run.device=gpu", "expected one of auto, cuda, mps, cpu"),
    ],
)
def test_a_value_out_of_range_is_told_the_range(word: str, says: str) -> None:
    assert says in refused(word).problem


def test_a_misspelt_choice_is_told_the_nearest() -> None:
    assert refused("train.precision=pf16").fix == "Did you mean 'fp16'?"


@pytest.mark.parametrize("word", ["+train.epochs=1", "++train.epochs=1", "~train.epochs", "~model", "+new=1"])
def test_fields_are_not_added_or_removed(word: str) -> None:
    assert refused(word).problem == f"'{word}': fields can be set, not added or removed."


@pytest.mark.parametrize("word", ["", "quickstart", "=", "=1", "--resume"])
def test_a_word_that_sets_nothing_is_shown_the_form(word: str) -> None:
    error = refused(word)
    assert error.problem == f"'{word}' is not of the form field=value."
    assert error.fix == "For example: optim.lr=1e-3."


@pytest.mark.parametrize("word", ["train.epochs=1,2", "optim.lr=choice(1,2)", "train.epochs=range(1,3)"])
def test_a_sweep_is_refused_as_one(word: str) -> None:
    assert "gives several values, and one run takes one" in refused(word).problem


@pytest.mark.parametrize(
    "word", ["optim.lr=${train.epochs}", "run.name=${oc.env:HOME}", "train.epochs=${nothing}"]
)
def test_a_reference_to_another_value_is_refused(word: str) -> None:
    """A reference that is resolved later would end in a traceback, or change when the run is resumed."""
    assert "cannot refer to another" in refused(word, "train.max_steps=1").problem


def test_a_field_that_has_no_value_is_asked_for() -> None:
    assert refused("data.name=???").fix == "Add data.name=VALUE."
    assert refused("experiment=null").problem == "train.epochs has no value."


FIELD_NAMES = [
    f"{section}.{field}"
    for section, fields in vars(compose_config([])).items()
    if hasattr(fields, "__dict__")
    for field in vars(fields)
]
NAMES = sorted({*FIELD_NAMES, *preset_groups()})


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(
        st.text(max_size=20),
        st.builds("{}={}".format, st.sampled_from(NAMES), st.text(max_size=12)),
        st.builds(
            "{}={}".format,
            st.sampled_from(NAMES),
            st.text("[]{}()',\"\\:$= 0123456789eE.+-_truefalsn~#", max_size=12),
        ),
        st.builds("{}=1".format, st.text(max_size=12)),
    )
)
@example("optim.lr=${x}")
@example("model.depths=[${x}]")
@example("train.epochs=int(float(inf))")
@example("optim.lr=extend_list(1)")
@example("train.epochs=json_str([1])")
@example("run.seed=1e999")
@example("\udc80=\udc80")
@example("train.epochs=\udc80")
def test_no_word_ever_ends_in_anything_but_a_configuration_or_a_message(word: str) -> None:
    try:
        config = compose_config([word])
    except UsageError as error:
        assert error.problem
    else:
        assert math.isfinite(config.optim.lr)
        assert config_from_yaml(config_to_yaml(config), [], "config.yaml") == config


def test_the_command_ends_with_one_message_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "optim.lrr=1",
        "optim=adam",
        "train.epochs=0",
        "train.epochs=x",
        "experiment=other",
        "+a=1",
        "train=1",
    ]
    for word in words:
        assert command(["train", "--print-config", word]) == EXIT_USAGE
        shown = typing.cast(str, capsys.readouterr().err)
        assert word.split("=")[0].strip("+") in shown
        assert "Traceback" not in shown
