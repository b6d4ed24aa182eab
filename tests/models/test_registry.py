"""Models by name have the published numbers of parameters; their initial weights depend on the seed only."""

import pytest
import torch

from neuscale.config import compose_config
from neuscale.errors import EXIT_USAGE, UsageError
from neuscale.models.layers import DropPath
from neuscale.models.registry import create_model


def build(
    *words: str, size: int = 28, channels: int = 1, classes: int = 10, seed: int = 0
) -> torch.nn.Module:
    return create_model(compose_config(list(words)).model, size, channels, classes, seed)


@pytest.mark.parametrize(
    ("preset", "size", "classes", "parameters"),
    [
        ("swin_t", 224, 1000, 28_288_354),  # torchvision's table
        ("swin_s", 224, 1000, 49_606_258),
        ("swin_b", 224, 1000, 87_768_224),
        ("vit_ti4", 64, 200, 5_436_296),  # DeiT's widths with a patch of 4
        ("vit_s4", 64, 200, 21_489_224),
    ],
)
def test_a_preset_has_the_published_number_of_parameters(
    preset: str, size: int, classes: int, parameters: int
) -> None:
    model = build(f"model={preset}", size=size, channels=3, classes=classes)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_small_swin_of_the_quickstart_has_as_many_parameters_as_its_sizes_make() -> None:
    def block(d: int, heads: int) -> int:
        attention = 4 * d * d + 4 * d + (2 * 7 - 1) ** 2 * heads
        mlp = 2 * (2 * d) * d + 2 * d + d
        return attention + mlp + 2 * 2 * d

    embedding = 4 * 4 * 1 * 48 + 48 + 2 * 48
    merging = 2 * 4 * 48 + 4 * 48 * 2 * 48
    expected = embedding + 2 * block(48, 3) + merging + 2 * block(96, 6) + 2 * 96 + 96 * 10 + 10
    assert expected == 211_420
    assert sum(p.numel() for p in build().parameters()) == expected


def test_the_image_size_changes_no_swin_parameter() -> None:
    assert [p.shape for p in build(size=28).parameters()] == [p.shape for p in build(size=56).parameters()]


@pytest.mark.parametrize("preset", ["swin_nano", "vit_ti4"])
def test_the_start_is_a_function_of_the_seed(preset: str) -> None:
    """A run that is trained again must start from the same weights."""
    torch.manual_seed(1)
    first = build(f"model={preset}", seed=5).state_dict()
    torch.manual_seed(2)
    again = build(f"model={preset}", seed=5).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = build(f"model={preset}", seed=6).state_dict()
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_building_leaves_the_random_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the CPU's nor a GPU's generator changes: building another model must not change the run."""

    def fail(_seed: int) -> None:
        raise AssertionError("seeds every GPU")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", fail)
    before = torch.get_rng_state()
    build(seed=2**63 - 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("words", "size", "says"),
    [
        (["model.patch_size=5"], 28, "28 pixels does not divide into patches of 5"),
        (["model.patch_size=64"], 28, "28 pixels does not divide into patches of 64"),
        (["model=vit_ti4"], 30, "30 pixels does not divide into patches of 4"),
        (["model.num_heads=[5,6]"], 28, "stage 1: 48 channels do not divide into 5 heads"),
        (["model.num_heads=[3,7]"], 28, "stage 2: 96 channels do not divide into 7 heads"),
        (["model.depths=[2,2,2]"], 28, "depths has 3 stages and num_heads 2"),
        (["model.depths=[]", "model.num_heads=[]"], 28, "or none"),
        (["model=vit_ti4", "model.num_heads=5"], 28, "192 channels do not divide into 5 heads"),
    ],
)
def test_sizes_that_do_not_go_together_are_named(words: list[str], size: int, says: str) -> None:
    with pytest.raises(UsageError, match=r"^model: ") as caught:
        build(*words, size=size)
    assert says in caught.value.problem
    assert "data.image_size" in caught.value.fix
    assert caught.value.exit_code == EXIT_USAGE


@pytest.mark.parametrize("preset", ["swin_nano", "vit_ti4"])
@pytest.mark.parametrize(("size", "channels", "classes"), [(28, 1, 10), (32, 3, 2), (4, 3, 1)])
def test_every_data_shape_has_a_model(preset: str, size: int, channels: int, classes: int) -> None:
    """The smallest case is an image of one patch."""
    model = build(f"model={preset}", size=size, channels=channels, classes=classes)
    assert model(torch.randn(2, channels, size, size)).shape == (2, classes)


def test_every_option_of_the_configuration_reaches_the_model() -> None:
    """Otherwise a setting would have no effect."""
    swin = ["model.patch_size=2", "model.embed_dim=6", "model.depths=[1]", "model.num_heads=[2]"]
    shown = repr(build(*swin, "model.mlp_ratio=2.75", "model.dropout=0.25", "model.drop_path_rate=0.5"))
    assert "Conv2d(1, 6, kernel_size=(2, 2)" in shown
    assert "out_features=16" in shown
    assert "Dropout(p=0.25" in shown
    table = build(*swin, "model.window_size=3").state_dict()["features.1.0.attn.relative_position_bias_table"]
    assert table.shape == (25, 2)
    vit = [
        "model=vit_ti4",
        "model.patch_size=2",
        "model.hidden_dim=6",
        "model.num_layers=2",
        "model.num_heads=2",
    ]
    model = build(
        *vit, "model.pool=mean", "model.mlp_ratio=2.75", "model.dropout=0.25", "model.drop_path_rate=0.5"
    )
    assert "class_token" not in model.state_dict()
    assert "out_features=16" in repr(model)
    assert "Dropout(p=0.25" in repr(model)
    for words in ([*swin, "model.depths=[2]"], vit):
        rates = [
            m.rate for m in build(*words, "model.drop_path_rate=0.5").modules() if isinstance(m, DropPath)
        ]
        assert rates == [0.0, 0.5]
        for chosen in (True, False):
            parts = build(*words, f"model.gradient_checkpointing={chosen}").modules()
            assert [m.gradient_checkpointing for m in parts if hasattr(m, "gradient_checkpointing")] == [
                chosen
            ]
