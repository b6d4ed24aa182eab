"""Arguments for torchvision's constructors, and adaptation of its published weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from neuscale.config import compose_config
from neuscale.errors import UsageError
from neuscale.models.library import _HEADS, head_names, try_one_image
from neuscale.models.registry import check_arch, create_model
from neuscale.models.torchvision_model import as_now, published_weights
from neuscale.models.weights import load_starting_weights, load_weights

Scrambler = Callable[[nn.Module], nn.Module]

# One model of each of torchvision's families. RegNet cannot be built on the meta device, and is small.
FAMILIES = ["alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "maxvit_t", "mnasnet0_5"]
FAMILIES += ["mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "resnet18", "shufflenet_v2_x0_5"]
FAMILIES += ["squeezenet1_1", "swin_t", "swin_v2_t", "vgg11", "vit_b_32"]


class Told(nn.Module):
    """Fake model of 7 classes that records its options and the shapes of its inputs."""

    def __init__(self, arch: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.arch, self.options = arch, options
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(tuple(images.shape))
        return torch.zeros(len(images), 7)


@pytest.mark.parametrize(
    ("arch", "more"),
    [
        ("resnet18", {}),
        ("swin_t", {}),
        ("googlenet", {"aux_logits": False, "init_weights": True}),
        ("inception_v3", {"aux_logits": False, "init_weights": True}),
        ("vit_b_16", {"image_size": 48}),
        ("vit_l_32", {"image_size": 48}),
        ("maxvit_t", {"input_size": (48, 48)}),
    ],
)
def test_each_architecture_is_told_what_it_has_to_know(
    monkeypatch: pytest.MonkeyPatch, arch: str, more: dict[str, Any]
) -> None:
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, **options: Told(name, options))
    config = compose_config(["model=torchvision", f"model.arch={arch}"]).model
    for channels, seen in ((3, 3), (1, 3)):
        model = create_model(config, 48, channels, 7, 0)
        assert isinstance(model, Told)
        assert (model.arch, model.options) == (arch, {"num_classes": 7, "weights": None, **more})
        assert model.seen == [(1, seen, 48, 48)]
        assert model.training
    with pytest.raises(UsageError, match=f"model.arch={arch}: takes colour images, and these have 4 ch"):
        create_model(config, 48, 4, 7, 0)


def test_a_name_is_checked_before_any_data_is_touched() -> None:
    for words in (["model=torchvision", "model.arch=resnet18"], ["model=swin_nano"], ["model=vit_ti4"]):
        check_arch(compose_config(words).model)
    with pytest.raises(UsageError, match="torchvision has no such classification model"):
        check_arch(compose_config(["model=torchvision", "model.arch=resnet17"]).model)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (torch.zeros(1, 6), r"gives shape \(1, 6\), not a score for each of 7 classes"),
        (torch.zeros(1, 7, 1), r"gives shape \(1, 7, 1\), not"),
        ((torch.zeros(1, 7),), "gives tuple, not"),
        (ValueError("too small.\nmore"), r"an image of 20×20 does not go through it \(too small"),
        (KeyError(), "an image of 20×20 does not go through it"),
    ],
)
def test_a_model_that_gives_no_scores_is_refused(result: Any, says: str) -> None:
    class Gives(nn.Module):
        def forward(self, images: Tensor) -> Any:
            assert images.shape == (1, 2, 20, 20)
            assert not self.training and not torch.is_grad_enabled()
            if isinstance(result, Exception):
                raise result
            return result

    with pytest.raises(UsageError, match=rf"^model.arch=some: {says}") as caught:
        try_one_image(Gives(), "some", 20, 2, 7)
    assert "\n" not in caught.value.problem


def test_what_a_library_says_at_length_is_cut() -> None:
    class Talks(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("x" * 300)

    with pytest.raises(UsageError) as caught:
        try_one_image(Talks(), "some", 20, 2, 7)
    assert len(caught.value.problem) == len("model.arch=some: ") + 200 + len(".")


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ({}, ("head.", "heads.", "fc.", "classifier.")),
        ({"classifier": None}, ("head.", "heads.", "fc.", "classifier.")),
        ({"classifier": "last"}, ("last.",)),
        ({"classifier": ("head", "head_dist")}, ("head.", "head_dist.")),
    ],
)
def test_timms_table_names_what_classifies(table: dict[str, Any], names: tuple[str, ...]) -> None:
    model: Any = nn.Identity()
    model.pretrained_cfg = table
    assert head_names(model) == names


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_head_of_every_family_is_known_by_its_name(arch: str) -> None:
    """Another number of classes changes the head's parameters only, and a linear probe trains them."""
    shapes = []
    for classes in (5, 7):
        with torch.device("cpu" if arch.startswith("regnet") else "meta"):
            model = torchvision.models.get_model(arch, num_classes=classes)
        shapes.append({name: value.shape for name, value in model.state_dict().items()})
    here, there = shapes
    differ = [name for name in here if here[name] != there[name]]
    assert differ
    for name in differ:
        assert name.startswith(head_names(model))
    probed = [name for name in here if name.split(".")[0] in _HEADS]
    assert set(differ) <= set(probed) < set(here)


def test_the_newest_published_weights_are_taken() -> None:
    assert str(published_weights("resnet50")) == "ResNet50_Weights.IMAGENET1K_V2"
    assert published_weights("vit_b_16").url.endswith("vit_b_16-c867db91.pth")


def tiny_vit(side: int, patch: int = 2) -> VisionTransformer:
    return VisionTransformer(side * patch, patch, 1, 2, 4, 8, num_classes=5)


def test_positions_are_interpolated_bicubically_between_the_corners() -> None:
    """A row of 0, 1, 2 resized to five positions keeps its corners, with cubic interpolation in between.

    Keys' kernel with a = -0.75 is 0.59375 at a distance of 1/2 and -0.09375 at 3/2; edges are repeated.
    """
    there, here = tiny_vit(3), tiny_vit(5)
    state = {name: value.clone() for name, value in there.state_dict().items()}
    row, column = torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij")
    grid = torch.stack([10 * row, 100 * column, row + 5, -column], -1).view(1, 9, 4)
    token = torch.tensor([[[7.0, -7.0, 70.0, -70.0]]])
    state["encoder.pos_embedding"] = torch.cat([token, grid], 1)
    at_half = 0.59375 * (0 + 1) - 0.09375 * (0 + 2)
    line = torch.tensor([0.0, at_half, 1.0, 2.0 - at_half, 2.0])
    row, column = torch.meshgrid(line, line, indexing="ij")
    expected = torch.stack([10 * row, 100 * column, row + 5, -column], -1).view(1, 25, 4)
    found = as_now(state, here)
    torch.testing.assert_close(found["encoder.pos_embedding"], torch.cat([token, expected], 1))
    assert load_weights(here, found, "w.pth", adapt=True) == []
    for name, value in here.state_dict().items():
        if name != "encoder.pos_embedding":
            assert torch.equal(value, state[name]), name


def test_the_file_of_a_wrapped_vit_starts_one_of_another_size(tmp_path: Path) -> None:
    """Wrapper prefixes are removed before any parameter is looked up by its name."""
    state = {f"module.{name}": value for name, value in tiny_vit(3).state_dict().items()}
    state["module.encoder.pos_embedding"] = torch.full((1, 10, 4), 3.0)
    torch.save(state, tmp_path / "w.pth")
    words = ["model=torchvision", "model.arch=vit_b_32", f"model.weights={tmp_path / 'w.pth'}"]
    model = tiny_vit(5)
    assert load_starting_weights(model, compose_config(words).model, 10, 3, 5).endswith("head included")
    torch.testing.assert_close(model.encoder.pos_embedding.detach(), torch.full((1, 26, 4), 3.0))


def test_positions_of_the_same_size_and_those_of_no_vit_stay(scramble: Scrambler) -> None:
    same = scramble(tiny_vit(3)).state_dict()
    assert as_now(same, tiny_vit(3))["encoder.pos_embedding"] is same["encoder.pos_embedding"]
    state = {"fc.weight": torch.ones(1)}
    assert as_now(state, torchvision.models.squeezenet1_1()) == state


def test_a_file_without_positions_is_another_model_and_no_traceback() -> None:
    state = {n: v for n, v in tiny_vit(3).state_dict().items() if n != "encoder.pos_embedding"}
    assert as_now(state, tiny_vit(5)).keys() == state.keys()


def test_old_names_are_changed_for_densenet_only_and_for_both_kinds_of_layer() -> None:
    densenet: Any = torchvision.models.DenseNet(growth_rate=2, block_config=(1,), num_init_features=2)
    old = {"features.denseblock1.denselayer1.norm.2.weight": torch.ones(1)}
    old["features.denseblock1.denselayer1.conv.1.weight"] = torch.zeros(1)
    assert list(as_now(old, densenet)) == [
        "features.denseblock1.denselayer1.norm2.weight",
        "features.denseblock1.denselayer1.conv1.weight",
    ]
    assert list(as_now(old, torchvision.models.squeezenet1_1())) == list(old)


def test_auxiliary_heads_are_left_out_where_the_model_has_none() -> None:
    names = ["aux1.fc1.weight", "aux2.conv.weight", "AuxLogits.fc.weight", "auxiliary.weight", "conv.weight"]
    state = {name: torch.ones(1) for name in names}
    assert list(as_now(state, nn.Identity())) == ["auxiliary.weight", "conv.weight"]
    has = nn.Module()
    has.aux1 = nn.Module()
    has.aux1.fc1 = nn.Linear(1, 1)
    assert list(as_now(state, has)) == ["aux1.fc1.weight", "auxiliary.weight", "conv.weight"]
