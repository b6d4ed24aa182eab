"""torchvision's and timm's models by name: the libraries' own, at the data's size."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from neuscale.config import compose_config
from neuscale.errors import EXIT_USAGE, CheckpointError, UsageError
from neuscale.models.registry import check_arch, create_model
from neuscale.models.weights import load_starting_weights

Scrambler = Callable[[nn.Module], nn.Module]


def build(*words: str, size: int = 32, channels: int = 3, classes: int = 5) -> nn.Module:
    return create_model(compose_config(list(words)).model, size, channels, classes, seed=0)


def of_torchvision(arch: str, **sizes: int) -> nn.Module:
    return build("model=torchvision", f"model.arch={arch}", **sizes)


def of_timm(arch: str, *words: str, **sizes: int) -> nn.Module:
    return build("model=timm", f"model.arch={arch}", *words, **sizes)


@pytest.mark.parametrize("arch", ["resnet18", "vit_b_16", "googlenet", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_what_is_trained_here_is_torchvisions_own_model(arch: str) -> None:
    """Same names, shapes and outputs: a state dict goes to plain torchvision as it is."""
    options = {"image_size": 32} if arch == "vit_b_16" else {}
    options |= {"aux_logits": False, "init_weights": False} if arch == "googlenet" else {}
    model = of_torchvision(arch)
    theirs = torchvision.models.get_model(arch, num_classes=5, **options)
    theirs.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), theirs.eval()(images))
    assert isinstance(model.train()(images), Tensor), "auxiliary heads would give more than one output"


@pytest.mark.parametrize("arch", ["test_vit", "test_resnet", "swin_tiny_patch4_window7_224"])
def test_what_is_trained_here_is_timms_own_model(arch: str) -> None:
    model = of_timm(arch)
    options = {} if "resnet" in arch else {"img_size": 32}
    theirs = timm.create_model(arch, num_classes=5, **options)
    theirs.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize(
    "build_one", [lambda: of_torchvision("shufflenet_v2_x0_5"), lambda: of_timm("test_vit")]
)
def test_the_start_is_a_function_of_the_seed(build_one: Callable[[], nn.Module]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_one().state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = build_one().state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_trying_an_image_leaves_batchnorm_and_the_mode_as_they_were() -> None:
    model = of_torchvision("shufflenet_v2_x0_5")
    assert model.training
    assert all(bool((b == 0).all()) for n, b in model.named_buffers() if n.endswith("running_mean"))


def test_a_gray_image_is_to_torchvision_what_it_is_in_colour() -> None:
    """And the names and shapes stay torchvision's."""
    gray, colour = of_torchvision("shufflenet_v2_x0_5", channels=1), of_torchvision("shufflenet_v2_x0_5")
    colour.load_state_dict(gray.state_dict(), strict=True)
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(gray.eval()(images), colour.eval()(images.expand(-1, 3, -1, -1)))


def test_timm_is_told_the_number_of_channels() -> None:
    assert of_timm("test_resnet", channels=1)(torch.randn(2, 1, 32, 32)).shape == (2, 5)


def test_timms_options_reach_the_model() -> None:
    words = ["model.drop_rate=0.3", "model.drop_path_rate=0.4", "model.gradient_checkpointing=true"]
    model = of_timm("test_vit", *words)
    assert model.head_drop.p == 0.3
    assert max(m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")) == pytest.approx(0.4)
    assert model.grad_checkpointing is True
    assert of_timm("efficientnet_b0").drop_rate == timm.create_model("efficientnet_b0").drop_rate


def test_timms_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for chosen in ("false", "true"):
        model = of_timm("test_vit", f"model.gradient_checkpointing={chosen}", "model.drop_path_rate=0.3")
        torch.manual_seed(3)
        model(torch.randn(4, 3, 32, 32)).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize(
    ("words", "size", "says", "fix"),
    [
        (["torchvision", "resnet81"], 32, "torchvision has no such", "'resnet18'"),
        (["torchvision", "fcn_resnet50"], 32, "torchvision has no such classification", "resnet50'"),
        (["timm", "vit_tinny_patch16_224"], 32, "timm has no such", "'vit_tiny_patch16_224'"),
        (["timm", "hf-hub:some/model"], 32, "timm has no such", "timm.list_models() lists them"),
        (["timm", "resnet18.none"], 32, "has no tag 'none'", "a1_in1k"),
        (["torchvision", "inception_v3"], 32, "an image of 32×32 does not go through", "data.image_size=224"),
        (["torchvision", "vit_b_16"], 30, "for 30×30 images: Input shape indivisible", "data.image_size"),
        (["torchvision", "maxvit_t"], 32, "not divisible by partition size 7", "data.image_size=224"),
        (["timm", "vit_tiny_patch16_224"], 8, "an image of 8×8 does not go through", "data.image_size=224"),
        (["timm", "vgg11", "model.drop_path_rate=0.1"], 32, "model.drop_path_rate: timm's vgg11", "away"),
        (["timm", "resnet18", "model.gradient_checkpointing=true"], 32, "resnet18 has BatchNorm", "without"),
    ],
)
def test_what_cannot_be_is_named(words: list[str], size: int, says: str, fix: str) -> None:
    library, arch, *more = words
    with pytest.raises(UsageError) as caught:
        build(f"model={library}", f"model.arch={arch}", *more, size=size)
    assert says in caught.value.problem
    assert "\n" not in caught.value.problem
    assert fix in caught.value.fix
    assert caught.value.exit_code == EXIT_USAGE


def test_without_timm_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match="timm is not installed") as caught:
        check_arch(compose_config(["model=timm", "model.arch=resnet18"]).model)
    assert caught.value.fix == "Install it: pip install timm."


def start_from(arch: str, state: dict[str, Tensor], folder: Path, library: str = "torchvision") -> nn.Module:
    torch.save(state, folder / "w.pth")
    config = compose_config(
        [f"model={library}", f"model.arch={arch}", f"model.weights={folder / 'w.pth'}"]
    ).model
    model = create_model(config, 32, 3, 5, seed=0)
    assert load_starting_weights(model, config, 32, 3, 5).endswith("with a new head")
    return model


@pytest.mark.parametrize(
    ("arch", "head"),
    [("shufflenet_v2_x0_5", "fc."), ("squeezenet1_1", "classifier."), ("densenet121", "classifier.")],
)
def test_torchvision_weights_in_a_file_get_a_new_head(
    arch: str, head: str, scramble: Scrambler, tmp_path: Path
) -> None:
    state = scramble(torchvision.models.get_model(arch, num_classes=7)).state_dict()
    model = start_from(arch, state, tmp_path)
    for name, value in model.state_dict().items():
        if not name.startswith(head):
            assert torch.equal(value, state[name]), name


def test_published_densenet_names_without_a_counter_are_known(scramble: Scrambler, tmp_path: Path) -> None:
    """torchvision's own files of 2017 have `norm.1` for `norm1`, and no num_batches_tracked."""
    theirs = scramble(torchvision.models.densenet121()).state_dict()
    old = {
        name.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value
        for name, value in theirs.items()
        if not name.endswith("num_batches_tracked")
    }
    model = start_from("densenet121", old, tmp_path)
    name = "features.denseblock1.denselayer1.norm1.weight"
    assert name not in old
    assert torch.equal(model.state_dict()[name], theirs[name])


def test_weights_with_auxiliary_heads_leave_these_out(scramble: Scrambler, tmp_path: Path) -> None:
    theirs = scramble(torchvision.models.googlenet(aux_logits=True, init_weights=False)).state_dict()
    model = start_from("googlenet", theirs, tmp_path)
    assert torch.equal(model.state_dict()["conv1.bn.weight"], theirs["conv1.bn.weight"])


def test_a_vits_positions_are_interpolated_to_the_image_size(tmp_path: Path) -> None:
    theirs = torchvision.models.vit_b_32(image_size=96).state_dict()
    model = start_from("vit_b_32", theirs, tmp_path)
    assert model.state_dict()["encoder.pos_embedding"].shape == (1, 2, 768)
    assert torch.equal(model.state_dict()["class_token"], theirs["class_token"])


def test_timm_weights_in_a_file_get_a_new_head(scramble: Scrambler, tmp_path: Path) -> None:
    state = scramble(timm.create_model("test_efficientnet", num_classes=7)).state_dict()
    model = start_from("test_efficientnet", state, tmp_path, "timm")
    assert torch.equal(model.state_dict()["bn1.weight"], state["bn1.weight"])


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    state = torchvision.models.shufflenet_v2_x1_0().state_dict()
    with pytest.raises(CheckpointError, match="weights of another model"):
        start_from("shufflenet_v2_x0_5", state, tmp_path)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_without_a_network_imagenet_weights_are_a_message(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    config = compose_config([f"model={library}", "model.arch=resnet18", "model.weights=imagenet"]).model
    with pytest.raises(UsageError, match=r"^model.weights=imagenet: .* cannot be had") as caught:
        load_starting_weights(nn.Identity(), config, 32, 3, 5)
    assert "model.weights=PATH" in caught.value.fix
    assert "\n" not in caught.value.problem
