"""Calls to timm and the use of its answers, with a fake timm, so that it need not be installed."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from neuscale.config import compose_config
from neuscale.errors import EXIT_USAGE, UsageError
from neuscale.models.registry import check_arch, create_model
from neuscale.models.weights import load_starting_weights


class Net(nn.Module):
    """Classifier whose head is a Linear called `last`, initialised from torch's generator."""

    def __init__(self, classes: int, channels: int, pretrained: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, 4, 2), nn.Linear(4, classes)
        self.checkpointing: list[bool] = []
        self.pretrained_cfg = {"classifier": "last", "tag": "tagged_in1k"}
        if pretrained:
            nn.init.constant_(self.first.weight, 0.5)
            nn.init.constant_(self.last.weight, 0.25)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.first(images).mean((2, 3)))

    def set_grad_checkpointing(self, enable: bool = False) -> None:
        self.checkpointing.append(enable)


class Timm(ModuleType):
    """Fake timm with the four functions that are used; `make` builds the model for create_model."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.make: Callable[..., nn.Module] = self.net

    def net(self, pretrained: bool, num_classes: int, in_chans: int, **_options: Any) -> nn.Module:
        return Net(num_classes, in_chans, pretrained)

    def is_model(self, name: str) -> bool:
        return name in self.list_models()

    def list_models(self) -> list[str]:
        return ["some_net", "some_vit", "other"]

    def list_pretrained(self, pattern: str) -> list[str]:
        return {"some_net.*": ["some_net.a1", "some_net.b2.deep"]}.get(pattern, [])

    def create_model(self, arch: str, **options: Any) -> nn.Module:
        self.calls.append((arch, options))
        return self.make(**options)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> Timm:
    stand_in = Timm()
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    return stand_in


def config(arch: str, *words: str) -> Any:
    return compose_config(["model=timm", f"model.arch={arch}", *words]).model


def build(arch: str, *words: str, seed: int = 5) -> Any:
    return create_model(config(arch, *words), 24, 2, 7, seed)


def refused(arch: str, *words: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        build(arch, *words)
    assert caught.value.exit_code == EXIT_USAGE
    assert "\n" not in caught.value.problem
    return caught.value


def rejecting(timm: Timm, *rejected: str) -> None:
    """Make the fake reject these options after it has drawn random numbers, as timm's models do."""

    def make(**options: Any) -> nn.Module:
        torch.rand(3)
        for name in rejected:
            if options.get(name) is not None:
                raise TypeError(f"Net.__init__() got an unexpected keyword argument '{name}'")
        return timm.net(**options)

    timm.make = make


def test_the_model_is_asked_for_with_the_sizes_of_the_data_and_the_recipes_options(timm: Timm) -> None:
    sizes = {"num_classes": 7, "in_chans": 2, "img_size": 24, "pretrained": False}
    build("some_net")
    build("some_net.b2.deep", "model.drop_rate=0.3", "model.drop_path_rate=0.4")
    assert timm.calls == [
        ("some_net", {**sizes, "drop_rate": None, "drop_path_rate": None}),
        ("some_net.b2.deep", {**sizes, "drop_rate": 0.3, "drop_path_rate": 0.4}),
    ]


def test_it_ends_in_training_mode_with_timms_weights_of_the_seed(timm: Timm) -> None:
    torch.manual_seed(5)
    expected = Net(7, 2).state_dict()
    before = torch.get_rng_state()
    model = build("some_net")
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert not torch.equal(build("some_net", seed=6).last.weight, expected["last.weight"])


def test_a_model_for_images_of_any_size_starts_as_if_it_had_never_been_asked_for_one(timm: Timm) -> None:
    rejecting(timm)
    expected = build("some_net").state_dict()
    rejecting(timm, "img_size")
    timm.calls.clear()
    found = build("some_net").state_dict()
    assert ["img_size" in options for _, options in timm.calls] == [True, False]
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.parametrize("option", ["drop_rate", "drop_path_rate"])
def test_an_option_that_the_model_does_not_have_is_named(timm: Timm, option: str) -> None:
    rejecting(timm, "img_size", option)
    error = refused("some_net", f"model.{option}=0.2")
    assert error.problem == f"model.{option}: timm's some_net has no such option."


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("bad size"), "model.arch=some_net: for 24×24 images: bad size."),
        (AssertionError("Input size\nmore"), "model.arch=some_net: for 24×24 images: Input size."),
        (RuntimeError(""), "model.arch=some_net: for 24×24 images: ."),
        (TypeError("unsupported operand"), "model.arch=some_net: unsupported operand."),
        (
            TypeError("f() got an unexpected keyword argument 'in_chans'"),
            "model.arch=some_net: f() got an unexpected keyword argument 'in_chans'.",
        ),
    ],
)
def test_what_timm_raises_is_a_message_in_its_words(timm: Timm, error: Exception, says: str) -> None:
    def make(**_options: Any) -> nn.Module:
        raise error

    timm.make = make
    found = refused("some_net")
    assert found.problem == says
    assert "data.image_size=224" in found.fix


def test_a_name_that_timm_does_not_have_gets_the_nearest(timm: Timm) -> None:
    error = refused("som_net")
    assert error.problem == "model.arch=som_net: timm has no such classification model."
    assert error.fix == "Did you mean 'some_net' or 'some_vit'?"
    assert refused("zzz").fix == "timm.list_models() lists them."
    assert timm.calls == []


def test_a_tag_is_one_that_timm_has_weights_for(timm: Timm) -> None:
    check_arch(config("some_net.a1"))
    check_arch(config("some_net.b2.deep"))
    error = refused("some_net.b2")
    assert error.problem == "model.arch=some_net.b2: timm's some_net has no tag 'b2'."
    assert error.fix == "It has weights tagged a1, b2.deep."
    assert refused("other.a1").fix == "It has no tagged weights."


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (None, "model=timm: timm is not installed."),
        ("a_part_of_it", "model=timm: timm cannot be imported (No module named 'a_part_of_it')."),
    ],
)
def test_without_timm_or_a_part_of_it_the_message_says_which(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, part: str | None, says: str
) -> None:
    if part is None:
        monkeypatch.setitem(sys.modules, "timm", None)
    else:
        monkeypatch.delitem(sys.modules, "timm", raising=False)
        (tmp_path / "timm.py").write_text(f"import {part}\n")
        monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as caught:
        check_arch(config("some_net"))
    assert caught.value.problem == says
    assert caught.value.fix == "Install it: pip install timm."


def test_gradient_checkpointing_is_switched_on_where_it_is_asked_for(timm: Timm) -> None:
    assert build("some_net").checkpointing == []
    assert build("some_net", "model.gradient_checkpointing=true").checkpointing == [True]


def test_gradient_checkpointing_is_refused_with_batchnorm_and_where_there_is_none(timm: Timm) -> None:
    class WithNorm(Net):
        def __init__(self, classes: int, channels: int) -> None:
            super().__init__(classes, channels)
            self.norm = nn.BatchNorm2d(4)

    class Cannot(Net):
        def set_grad_checkpointing(self, enable: bool = False) -> None:
            assert not enable, "gradient checkpointing not supported"

    word = "model.gradient_checkpointing=true"
    timm.make = lambda num_classes, in_chans, **_options: WithNorm(num_classes, in_chans)
    assert "some_net has BatchNorm" in refused("some_net", word).problem
    assert build("some_net").norm.training
    timm.make = lambda num_classes, in_chans, **_options: Cannot(num_classes, in_chans)
    assert refused("some_net", word).problem == "model.gradient_checkpointing: timm's some_net has none."


def test_the_trial_image_has_the_size_of_the_data(timm: Timm) -> None:
    seen: list[torch.Size] = []

    class Looks(Net):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.shape)
            return super().forward(images)

    timm.make = lambda num_classes, in_chans, **_options: Looks(num_classes, in_chans)
    build("some_net")
    assert seen == [(1, 2, 24, 24)]
    timm.make = lambda num_classes, in_chans, **_options: Net(num_classes + 1, in_chans)
    assert "gives shape (1, 8), not a score for each of 7 classes" in refused("some_net").problem


def test_published_weights_are_timms_for_these_sizes_and_named_with_their_tag(timm: Timm) -> None:
    asked = config("some_net.a1", "model.weights=imagenet", "model.drop_rate=0.1")
    model = create_model(asked, 24, 2, 7, 5)
    timm.calls.clear()
    before = torch.get_rng_state()
    said = load_starting_weights(model, asked, 24, 2, 7)
    assert said == "weights from timm some_net.tagged_in1k, head included"
    assert torch.equal(torch.get_rng_state(), before)
    options = {"num_classes": 7, "in_chans": 2, "img_size": 24, "drop_rate": 0.1, "drop_path_rate": None}
    assert timm.calls == [("some_net.a1", {**options, "pretrained": True})]
    state = model.state_dict()
    assert (state["first.weight"] == 0.5).all() and (state["last.weight"] == 0.25).all()


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("no pretrained weights exist\nmore"), "(no pretrained weights exist)"),
        (OSError(""), "(OSError)"),
    ],
)
def test_published_weights_that_cannot_be_had_are_a_message(timm: Timm, error: Exception, says: str) -> None:
    def make(pretrained: bool, **options: Any) -> nn.Module:
        if pretrained:
            raise error
        return timm.net(False, **options)

    timm.make = make
    asked = config("some_net.a1", "model.weights=imagenet")
    with pytest.raises(UsageError) as caught:
        load_starting_weights(create_model(asked, 24, 2, 7, 5), asked, 24, 2, 7)
    problem = "model.weights=imagenet: timm's weights of some_net.a1 cannot be had"
    assert caught.value.problem == f"{problem} {says}."
    assert "timm.list_pretrained('some_net*')" in caught.value.fix


def test_a_head_that_timms_table_names_is_new_for_other_classes(timm: Timm, tmp_path: Any) -> None:
    """`last` is not one of the known head names: only timm's `pretrained_cfg` names it."""
    torch.save(Net(9, 2, pretrained=True).state_dict(), tmp_path / "w.pth")
    asked = config("some_net", f"model.weights={tmp_path / 'w.pth'}")
    model = create_model(asked, 24, 2, 7, 5)
    before = model.get_parameter("last.weight").detach().clone()
    assert load_starting_weights(model, asked, 24, 2, 7).endswith("with a new head")
    assert torch.equal(model.get_parameter("last.weight"), before)
    assert (model.get_parameter("first.weight") == 0.5).all()
