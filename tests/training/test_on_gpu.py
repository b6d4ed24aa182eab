"""Training tests that need a GPU: `make test-gpu`."""

from collections.abc import Callable

import pytest
import torch

from neuscale.config import Config
from neuscale.config.schema import AugmentConfig
from neuscale.data.formats.packed import PackedDataset, packed_path
from neuscale.data.loaders.resident import ResidentLoader
from neuscale.data.loaders.streaming import StreamLoader
from neuscale.distributed.rank import Rank
from neuscale.training.run import train
from training.test_resume import SignalAt, assert_equal, curves, final_state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that this torch can use"),
]

ConfigBuilder = Callable[..., Config]
ON_CARD = ("run.device=cuda", "run.deterministic=true", "train.epochs=2", "train.micro_batch=6")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("ops", ["eager", "fused"])
def test_stopped_and_resumed_equals_undisturbed(tiny: ConfigBuilder, precision: str, ops: str) -> None:
    """The state restored on resume includes the loss scale of fp16."""
    words = (*ON_CARD, f"train.precision={precision}", f"model.ops={ops}", "train.ema_decay=0.9")
    whole = train(tiny(*words, "run.name=whole")).run
    stopped = train(tiny(*words, "run.name=broken"), None, SignalAt(3))
    assert stopped.outcome.stopped_by == "SIGTERM"
    went_on = train(tiny(*words, "run.name=broken"), stopped.run)
    assert went_on.outcome.steps == 10
    assert_equal(final_state(whole), final_state(went_on.run))
    assert curves(whole) == curves(went_on.run)


def test_a_compiled_model_with_recomputed_blocks_trains(tiny: ConfigBuilder) -> None:
    words = ("train.compile=true", "model.gradient_checkpointing=true", "train.precision=bf16")
    plain = train(tiny(*ON_CARD, "train.precision=bf16", "run.name=plain")).outcome
    both = train(tiny(*ON_CARD, *words, "run.name=both")).outcome
    assert plain.last is not None and both.last is not None
    assert both.last.loss == pytest.approx(plain.last.loss, abs=0.1)


@pytest.mark.parametrize("processes", [1, 2])
def test_loaders_on_the_card_give_the_cpus_batches(tiny: ConfigBuilder, processes: int) -> None:
    """The stream's copies run beside the computation; a batch that is read too early holds garbage."""
    augment = AugmentConfig(crop_padding=1, horizontal_flip=0.5, erasing=0.5)
    tiny()
    data = PackedDataset.open(packed_path("tiny"))
    share = Rank(processes - 1, processes)
    expected = [
        batch
        for step in ResidentLoader(data, "train", None, torch.device("cpu"), share).training(
            augment, 3, 0, 0, 5, 12, 1
        )
        for batch in step
    ]
    for kind in (ResidentLoader, StreamLoader):
        loader = kind(data, "train", None, torch.device("cuda"), share)
        for _ in range(20):
            found = [batch for step in loader.training(augment, 3, 0, 0, 5, 12, 1) for batch in step]
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours.images.cpu(), theirs.images, rtol=1e-6, atol=1e-6)
                assert torch.equal(ours.labels.cpu(), theirs.labels)
