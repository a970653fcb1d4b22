"""From what the user types to one run, looking on many hosts at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from launch.errors import Exit, LaunchError
from launch.inventory import Host, Inventory
from launch.runs.observe import Run, observe
from launch.transport import Transport, connect
from minimind.rundir import RUN_ID

LAST = "last"


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What one host showed: its runs, or why it could not be asked."""

    host: Host
    runs: tuple[Run, ...] = ()
    error: LaunchError | None = None
    transport: Transport | None = None


def survey(inventory: Inventory, hosts: Sequence[Host], stack: ExitStack, *, run_id: str = "") -> list[Sight]:
    """Observe many hosts at once; connections stay open until ``stack`` closes them."""

    def look(host: Host) -> Sight:
        try:
            transport = connect(host, inventory)
            stack.callback(transport.close)
            return Sight(host=host, transport=transport, runs=tuple(observe(transport, run_id=run_id)))
        except LaunchError as error:
            return Sight(host=host, error=error)

    if len(hosts) == 1:
        return [look(hosts[0])]
    with ThreadPoolExecutor(max_workers=max(1, min(16, len(hosts)))) as pool:
        return list(pool.map(look, hosts))


def resolve(
    wanted: str,
    inventory: Inventory,
    stack: ExitStack,
    *,
    host: str | None = None,
    warn: Callable[[LaunchError], None],
) -> tuple[Transport, Run]:
    """The run that the user means by an id, a unique prefix of one, a name (its latest run) or ``last``.

    Raises:
        LaunchError: USAGE when several fit, INVALID when none does, UNREACHABLE when the only place to look is.
    """
    hosts = [inventory.host(host)] if host else list(inventory.hosts.values())
    sights = survey(inventory, hosts, stack, run_id=wanted if RUN_ID.fullmatch(wanted) else "")
    for sight in sights:
        if sight.error and len(hosts) == 1:
            raise sight.error
        if sight.error:
            warn(sight.error)
    found = [(sight.transport, run) for sight in sights if sight.transport for run in sight.runs]
    fitting = matches(latest([run for _, run in found]), wanted)
    if len(fitting) == 1:
        return next((transport, run) for transport, run in found if run is fitting[0])
    if fitting:
        places = len({run.run_id for run in fitting}) == 1
        raise LaunchError(
            f"{wanted!r} fits {len(fitting)} runs",
            why=", ".join(f"{run.run_id} on {run.host}" if places else run.run_id for run in fitting[-8:]),
            remedy="say --host NAME" if places else "give more of the id",
            code=Exit.USAGE,
        )
    unseen = [sight.host.name for sight in sights if sight.error]
    looked = ", ".join(h.name for h in hosts if h.name not in unseen) or "no host"
    raise LaunchError(
        f"there is no run {wanted!r}",
        why=f"looked on {looked}" + (f"; could not look on {', '.join(unseen)}" if unseen else ""),
        remedy="launch ps --all",
        code=Exit.UNREACHABLE if unseen else Exit.INVALID,
    )


def latest(runs: Sequence[Run]) -> list[Run]:
    """Of a run that was moved, and so lies on several hosts, the one that went on."""
    attempts: dict[str, int] = {}
    for run in runs:
        attempts[run.run_id] = max(attempts.get(run.run_id, 0), run.state.attempt)
    return [run for run in runs if run.state.attempt == attempts[run.run_id]]


def matches(runs: Sequence[Run], wanted: str) -> list[Run]:
    """The runs that ``wanted`` may mean: exactly one for an id, a name or ``last``, several for a short prefix."""
    ordered = sorted(runs, key=lambda run: run.run_id)
    exact = [run for run in ordered if run.run_id == wanted]
    if exact:
        return exact
    if wanted == LAST:
        return [run for run in ordered if run.run_id == ordered[-1].run_id]
    named = [run for run in ordered if run.name == wanted]
    begun = [run for run in ordered if wanted and run.run_id.startswith(wanted)]
    return [run for run in named if run.run_id == named[-1].run_id] or begun
