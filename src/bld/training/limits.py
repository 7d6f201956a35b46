"""What may end a training run before its samples are done."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """deadline: of time.monotonic(), at which a run stops to go on later; within: seconds that the whole
    run may take, so its learning rate falls to 0 by then.
    """

    deadline: float = math.inf
    within: float = math.inf


NO_LIMITS = Limits()
