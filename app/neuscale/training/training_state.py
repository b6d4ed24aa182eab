"""State of a training in a checkpoint, and resuming from it."""

from typing import TYPE_CHECKING, Any

from neuscale.config import Config
from neuscale.errors import CheckpointError
from neuscale.models.weights import load_weights
from neuscale.progress import Progress
from neuscale.training.checkpoint import Checkpoint
from neuscale.training.lr_schedule import Span, lr_at
from neuscale.training.state_by_name import load_optimizer_state, optimizer_state
from neuscale.untrusted import reason_of

if TYPE_CHECKING:
    from neuscale.training.trainer import Trainer

# A change of the learning rate on resume by up to this factor is not reported as a jump.
_NO_JUMP = 1.1


def state_dict(trainer: "Trainer") -> dict[str, Any]:
    """Everything that a checkpoint contains besides the step. All ranks must call this."""
    scaler = trainer.accelerator.scaler
    return {
        "weights": trainer.raw_model.state_dict(),
        "average": trainer.ema.average if trainer.ema is not None else None,
        "training": {
            "optimizer": optimizer_state(trainer.inner_optimizer, trainer.raw_model),
            "schedule": trainer.span.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "total_steps": trainer.total_steps,
            **trainer.metrics.state_dict(),
            "parts": trainer.accumulation.steps,
            "average_updates": trainer.ema.updates if trainer.ema is not None else 0,
        },
    }


def load_state_dict(trainer: "Trainer", state: dict[str, Any], step: int, source: str) -> list[str]:
    """Resume after `step`, from the `state_dict` saved there; `source` names it in errors.

    Return warnings, for example about parameters that are trained from now on or no longer trained.
    """
    training = state["training"]
    load_weights(trainer.raw_model, state["weights"], source)
    new, gone = load_optimizer_state(
        trainer.inner_optimizer, trainer.raw_model, training["optimizer"], trainer.config.optim
    )
    if trainer.ema is not None:
        # None if train.ema_decay was added on resume: the average starts at the weights.
        average = state["average"] if state["average"] is not None else trainer.raw_model.state_dict()
        trainer.ema.load(average, training["average_updates"])
    if trainer.accelerator.scaler is not None and training["scaler"] is not None:
        trainer.accelerator.scaler.load_state_dict(training["scaler"])
    trainer.metrics.load_state_dict(training, step % trainer.config.train.log_every_steps)
    loop, known = state.get("loop") or {}, True
    if "best" in loop:
        known = trainer.best.load_state_dict(loop["best"])
    elif "best_top1" in training:  # saved by an older version
        known = trainer.best.load_top1(training["best_top1"], training["stale"])
    trainer.evaluation_due = bool(loop.get("evaluation_due"))
    trainer.step = step
    if trainer.config.train.micro_batch == "auto":
        images = trainer.config.train.global_batch_size // trainer.rank.world_size
        trainer.accumulation.steps = training["parts"] if images % training["parts"] == 0 else 1
    trainer.first = (step, trainer.metrics.timer.seconds)
    trainer.saved_step = step
    notes = [f"{', '.join(new[:3])}{' …' if len(new) > 3 else ''}: trained from here on"] if new else []
    notes += [f"{', '.join(gone[:3])}{' …' if len(gone) > 3 else ''}: not trained any more"] if gone else []
    return notes + ([] if known else [f"the best evaluation so far is not known by {trainer.best.metric}"])


def loop_state(trainer: "Trainer") -> dict[str, Any]:
    """The part of the state that evaluations change."""
    return {"best": trainer.best.state_dict(), "evaluation_due": trainer.evaluation_due}


def go_on(trainer: "Trainer", checkpoint: Checkpoint, before: Config, progress: Progress) -> None:
    """Resume from `checkpoint`, saved with the configuration `before`; warn if the learning rate jumps.

    Raises CheckpointError if its state does not fit the training.
    """
    try:
        state = checkpoint.state_dict()
        training = state["training"]
        notes = load_state_dict(trainer, state, checkpoint.step, str(checkpoint.path))
        total_before = training.get("total_steps", trainer.steps_of(before))
        span = Span.of(training.get("schedule"), total_before)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise CheckpointError(
            f"{checkpoint.path}: its state does not fit this training ({reason_of(error)}).",
            "Resume with the configuration that it was saved with.",
        ) from error
    for note in notes:
        progress.warning(note)
    optim, step, spe = trainer.config.optim, checkpoint.step, trainer.steps_per_epoch
    trainer.span = span
    if total_before != trainer.total_steps:
        trainer.span = span.extended(optim, step, trainer.total_steps)
    if step < trainer.total_steps:
        was, now = lr_at(before.optim, step, spe, span), lr_at(optim, step, spe, trainer.span)
        if not was / _NO_JUMP <= now <= was * _NO_JUMP:
            _say_jump(trainer, was, now, total_before, progress)


def _say_jump(trainer: "Trainer", was: float, now: float, total_before: int, progress: Progress) -> None:
    why = ""
    if total_before != trainer.total_steps:
        policy = trainer.config.optim.on_extend
        others = {
            "rescale": "stretches the schedule over all steps",
            "hold": "keeps it where it ended",
            "restart": "begins it anew over the steps that are left",
        }
        rest = "; ".join(f"{name} {words}" for name, words in others.items() if name != policy)
        why = (
            f": the run has {trainer.total_steps:,} steps instead of {total_before:,}, and"
            f" optim.on_extend={policy} {others[policy]} ({rest})"
        )
    progress.warning(f"the learning rate is {now:.3g} from here on, where it would have been {was:.3g}{why}")
