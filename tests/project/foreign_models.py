"""Models that users could bring: the source of each module, and the preset that names it."""

from dataclasses import dataclass, field

_HEAD = "import torch\nfrom torch import nn\n\n"

CONVOLUTIONAL = (
    _HEAD
    + """
class Net(nn.Module):
    def __init__(self, num_classes, in_channels, width=8):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, 2, 1)
        self.more = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        x = self.more(self.stem(x).relu()).relu()
        return self.head(x.mean((2, 3)))
"""
)

ATTENTION = (
    _HEAD
    + """
class Net(nn.Module):
    def __init__(self, num_classes, image_size, dim=16, heads=2):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, 4)
        self.places = nn.Parameter(torch.randn(1, (image_size // 4) ** 2, dim) * 0.02)
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        y = self.norm(x)
        return self.head((x + self.attention(y, y, y, need_weights=False)[0]).mean(1))
"""
)

MLP = (
    _HEAD
    + """
def net(num_classes, image_size, in_channels, width=32):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(in_channels * image_size**2, width), nn.GELU(), nn.Linear(width, num_classes)
    )
"""
)

BATCH_NORM = (
    _HEAD
    + """
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
"""
)

DROPOUT = (
    _HEAD
    + """
from parts.blocks import Block

class Net(nn.Module):
    def __init__(self, num_classes, rate):
        super().__init__()
        self.body = Block(8, rate)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))
"""
)

BLOCK = (
    _HEAD
    + """
class Block(nn.Sequential):
    def __init__(self, width, rate):
        super().__init__(nn.Conv2d(3, width, 3, 2, 1), nn.GELU(), nn.Dropout(rate))
"""
)

TUPLE = (
    _HEAD
    + """
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, num_classes)

    def forward(self, x):
        features = self.body(x).mean((2, 3))
        return self.head(features), features
"""
)

REGISTERED = (
    _HEAD
    + """
from timm.models import register_model

class OwnNet(nn.Module):
    def __init__(self, num_classes=10, in_chans=3, **kwargs):
        super().__init__()
        self.body, self.head = nn.Conv2d(in_chans, 8, 4, 4), nn.Linear(8, num_classes)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

@register_model
def own_net_of_a_user(pretrained=False, **kwargs):
    return OwnNet(**{name: kwargs[name] for name in ("num_classes", "in_chans") if name in kwargs})
"""
)

CUSTOM_AUTOGRAD = (
    _HEAD
    + """
class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * (x.abs() <= 1)

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, num_classes)

    def forward(self, x):
        return self.head(Sign.apply(self.body(x)).mean((2, 3)))
"""
)

NEEDS_128 = (
    _HEAD
    + """
class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 32, 32)
        self.head = nn.Linear(4 * 16, num_classes)

    def forward(self, x):
        assert x.shape[-1] == 128, "this network is for images of 128 pixels"
        return self.head(self.body(x).flatten(1))
"""
)


@dataclass(frozen=True)
class Foreign:
    """A user's model: preset `conf/model/mine.yaml`, other files, and overrides that its training needs."""

    preset: str
    files: dict[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    package: str = ""  # optional package that the model needs


def _module(source: str, preset: str = "_target_: mynet.Net\n", **more: str) -> Foreign:
    return Foreign(
        preset, {"mynet.py": source, **{name.replace("__", "/") + ".py": t for name, t in more.items()}}
    )


MODELS = {
    "convolutional": _module(CONVOLUTIONAL, "_target_: mynet.Net\nwidth: 6\n"),
    "attention": _module(ATTENTION, "_target_: mynet.Net\nheads: 4\n"),
    "mlp": _module(MLP, "_target_: mynet.net\n"),
    "batch norm": _module(BATCH_NORM),
    "dropout": _module(DROPOUT, "_target_: mynet.Net\nrate: 0.2\n", parts__blocks=BLOCK),
    "tuple": _module(TUPLE),
    "torchvision": Foreign(
        "_target_: torchvision.models.squeezenet1_1\nnum_classes: 3\ndropout: 0.1\n",
        words=("data.image_size=32",),
    ),
    "timm": Foreign(
        "defaults: [timm_schema, _self_]\narch: own_net_of_a_user\nimports: [mynet]\n",
        {"mynet.py": REGISTERED},
        package="timm",
    ),
    "custom autograd": _module(CUSTOM_AUTOGRAD),
    "needs 128 pixels": Foreign("_target_: mynet.Net\n", {"mynet.py": NEEDS_128}, ("data.image_size=128",)),
}
