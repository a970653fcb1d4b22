"""What a supervisor does about ranks that hang, that died and left others behind, or that must leave at once.

Standard library only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minimind.process import descendants, kill_all
from minimind.pulse import Watch
from minimind.rundir import Reason, RunDir

LOOK_S = 1.0


class Warden:
    """Watches one attempt's ranks; ``verdict`` is what exit.json says when it had to end them."""

    def __init__(self, folder: Path, nproc: int) -> None:
        self.watch = Watch(folder, nproc)
        self.verdict: dict[str, Any] | None = None
        self.looked_at = time.monotonic()

    def look(self) -> None:
        """Look at the ranks, if it is time to, and end those that will not end by themselves."""
        now = time.monotonic()
        if now - self.looked_at < LOOK_S or self.verdict:
            return
        trouble = self.watch.look(now - self.looked_at)
        self.looked_at = now
        if trouble is None:
            return
        if trouble.reason is Reason.HUNG:
            said = {"what": trouble.what, "why": trouble.why, "remedy": trouble.remedy, "rank": trouble.ranks[0]}
            self.verdict = {"reason": Reason.HUNG, **said}
            end_all_below()
        else:  # torchrun itself goes on, and tells who died of what
            kill_all(self.watch.pids())

    def stop_at_once(self, run: RunDir, last_step: Callable[[], int]) -> None:
        """End every rank, saving nothing, because somebody asked for that; then what is lost can be counted."""
        end_all_below()
        saved = max(run.checkpoint_steps(), default=0)
        kept = f"the last checkpoint is step {saved}" if saved else "there is no checkpoint yet"
        self.verdict = {
            "reason": None,
            "stopped": "now",
            "what": "stopped at once, as it was asked to",
            "why": f"`launch stop --now`, or SIGQUIT to its supervisor; {kept}, {max(0, last_step() - saved)} steps "
            "since then are lost",
            "remedy": "`launch resume` goes on from there; `launch stop` without --now saves first",
        }


def end_all_below() -> None:
    """SIGKILL every process below this one: torchrun, the ranks in their own sessions, and what they started."""
    for _ in range(3):  # one may have been starting another
        below = descendants(os.getpid())
        if not below:
            return
        kill_all(below)
        time.sleep(0.05)
