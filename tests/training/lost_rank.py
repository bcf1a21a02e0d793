"""Two ranks that sum numbers, of which one is killed or hangs at the third; started by `test_losses.py`."""

from __future__ import annotations

import os
import signal
import sys
import time

from whet import ranks as module
from whet.errors import WhetError
from whet.ranks import Ranks, together


@together()
def work(ranks: Ranks, how: str) -> None:
    for step in range(1, 6):
        ranks.at = f"step {step}, learn"
        if step == 3 and ranks.rank == 1:
            time.sleep(1.5 * module.BEAT)  # it has said where it is
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(4.0)
        ranks.sum({"n": 1.0})


if __name__ == "__main__":
    module.BEAT, module.PATIENCE = 0.2, 1.0
    signal.signal(signal.SIGTERM, lambda *_: None)  # torchrun sends it at once; `whet run` takes it as a wish
    try:
        work(Ranks.here(), sys.argv[1])
    except WhetError as problem:
        print(f"whet: error: {problem}", file=sys.stderr)
        sys.exit(2)
