"""Whether code that lies in run folders may be run: where the user says so, as a run may be anybody's."""

import os

TRUST = "NEUSCALE_TRUST"


def is_trusted() -> bool:
    """True with `--trust`, or $NEUSCALE_TRUST=1."""
    return os.environ.get(TRUST, "") not in ("", "0")
