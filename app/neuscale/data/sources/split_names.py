"""The names that people give to the splits of a data set."""

# In small letters; of the held-out ones, the first that is there is "val".
TRAIN_NAMES = ("train", "training", "trn")
VAL_NAMES = ("val", "validation", "valid", "validate", "dev", "eval")
TEST_NAMES = ("test", "testing", "tst")


def split_of(name: str) -> str | None:
    """train, val or test for a name of one; None for another word."""
    lower = name.strip().lower()
    splits = {"train": TRAIN_NAMES, "val": VAL_NAMES, "test": TEST_NAMES}
    return next((split for split, names in splits.items() if lower in names), None)
