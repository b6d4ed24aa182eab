"""Common names of the splits of a data set."""

# In lower case.
TRAIN_NAMES = ("train", "training", "trn")
VAL_NAMES = ("val", "validation", "valid", "validate", "dev", "eval")
TEST_NAMES = ("test", "testing", "tst")


def split_of(name: str) -> str | None:
    """Split (train, val or test) that a name stands for; None for another word."""
    lower = name.strip().lower()
    splits = {"train": TRAIN_NAMES, "val": VAL_NAMES, "test": TEST_NAMES}
    return next((split for split, names in splits.items() if lower in names), None)
