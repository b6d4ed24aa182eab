"""torchvision's models by name: they are the library's own models, at the data's image size."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from neuscale.config import compose_config
from neuscale.errors import EXIT_USAGE, CheckpointError, UsageError
from neuscale.models.registry import create_model
from neuscale.models.weights import load_starting_weights

Scrambler = Callable[[nn.Module], nn.Module]


def of_torchvision(
    arch: str, size: int = 32, channels: int = 3, classes: int = 5, seed: int = 0
) -> nn.Module:
    config = compose_config(["model=torchvision", f"model.arch={arch}"]).model
    return create_model(config, size, channels, classes, seed)


@pytest.mark.parametrize("arch", ["resnet18", "vit_b_16", "googlenet", "shufflenet_v2_x0_5", "squeezenet1_1"])
def test_what_is_trained_here_is_torchvisions_own_model(arch: str) -> None:
    """Names, shapes and outputs are the same, so that a state dict loads into plain torchvision unchanged."""
    options = {"image_size": 32} if arch == "vit_b_16" else {}
    options |= {"aux_logits": False, "init_weights": False} if arch == "googlenet" else {}
    model = of_torchvision(arch)
    theirs = torchvision.models.get_model(arch, num_classes=5, **options)
    theirs.load_state_dict(model.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), theirs.eval()(images))
    assert isinstance(model.train()(images), Tensor), "auxiliary heads would give more than one output"


def test_the_start_is_a_function_of_the_seed() -> None:
    """It depends on nothing else, and building the model leaves the global random state unchanged."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = dict(of_torchvision("shufflenet_v2_x0_5", seed=4).named_parameters())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = dict(of_torchvision("shufflenet_v2_x0_5", seed=4).named_parameters())
    other = dict(of_torchvision("shufflenet_v2_x0_5", seed=5).named_parameters())
    for name, parameter in first.items():
        assert torch.equal(parameter, again[name]), name
        if parameter.dim() > 1:
            assert not torch.equal(parameter, other[name]), name


def test_trying_an_image_leaves_batchnorm_and_the_mode_as_they_were() -> None:
    model = of_torchvision("shufflenet_v2_x0_5")
    assert all(module.training for module in model.modules())
    fresh = torchvision.models.shufflenet_v2_x0_5(num_classes=5)
    for name, value in model.named_buffers():
        assert torch.equal(value, fresh.get_buffer(name)), name


def test_a_gray_image_is_to_torchvision_what_it_is_in_colour() -> None:
    """Parameter names and shapes stay torchvision's."""
    gray, colour = of_torchvision("shufflenet_v2_x0_5", channels=1), of_torchvision("shufflenet_v2_x0_5")
    colour.load_state_dict(gray.state_dict(), strict=True)
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(gray.eval()(images), colour.eval()(images.expand(-1, 3, -1, -1)))


@pytest.mark.parametrize(
    ("arch", "size", "says", "fix"),
    [
        ("resnet81", 32, "torchvision has no such", "'resnet18'"),
        ("fcn_resnet50", 32, "torchvision has no such classification", "resnet50'"),
        ("zzz", 32, "torchvision has no such classification", "torchvision.models.list_models() lists them."),
        ("inception_v3", 32, "an image of 32×32 does not go through", "data.image_size=224"),
        ("vit_b_16", 30, "for 30×30 images: Input shape indivisible", "data.image_size"),
        ("maxvit_t", 32, "not divisible by partition size 7", "data.image_size=224"),
    ],
)
def test_what_cannot_be_is_named(arch: str, size: int, says: str, fix: str) -> None:
    with pytest.raises(UsageError) as caught:
        of_torchvision(arch, size)
    assert caught.value.problem.startswith(f"model.arch={arch}: ")
    assert says in caught.value.problem
    assert "\n" not in caught.value.problem
    assert fix in caught.value.fix
    assert caught.value.exit_code == EXIT_USAGE


def start_from(arch: str, state: dict[str, Tensor], folder: Path) -> nn.Module:
    torch.save(state, folder / "w.pth")
    config = compose_config(
        ["model=torchvision", f"model.arch={arch}", f"model.weights={folder / 'w.pth'}"]
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


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    state = torchvision.models.shufflenet_v2_x1_0().state_dict()
    with pytest.raises(CheckpointError, match="weights of another model"):
        start_from("shufflenet_v2_x0_5", state, tmp_path)


def test_without_a_network_imagenet_weights_are_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    config = compose_config(["model=torchvision", "model.arch=resnet18", "model.weights=imagenet"]).model
    with pytest.raises(UsageError, match=r"^model.weights=imagenet: .* cannot be had") as caught:
        load_starting_weights(nn.Identity(), config, 32, 3, 5)
    assert "model.weights=PATH" in caught.value.fix
    assert "\n" not in caught.value.problem
