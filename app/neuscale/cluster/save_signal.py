"""SIGUSR2, with which a batch script asks a run to save and end.

A program that has not got as far as to act on it would die of it. Held back, the signal waits,
also for processes that are started meanwhile: they inherit it.
"""

import signal

SAVE_SIGNAL: int | None = getattr(signal, "SIGUSR2", None)


def hold_save_signal() -> None:
    """From here on the signal waits."""
    if SAVE_SIGNAL is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {SAVE_SIGNAL})


def accept_save_signal() -> None:
    """Its handler is there: one that has waited comes now."""
    if SAVE_SIGNAL is not None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {SAVE_SIGNAL})
