"""`launch doctor`: is a host fit to train, and if not, what to do."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from launch import environment
from launch.cli import session
from launch.cli.run import Ranks
from launch.doctor import Report, Verdict, built_for, deep, examine, targets
from launch.environment import image as images
from launch.errors import Exit, LaunchError
from launch.inventory import Host, Inventory
from launch.transport import connect
from launch.ui import checklist, paragraph


@click.command()
@click.argument("host", required=False)
@click.option("--deep", "deeply", is_flag=True, help="Also run an all-reduce and a disk test there, and clean up.")
@click.option("--nproc", type=Ranks(), help="Ranks of the all-reduce.  [default: one a GPU, else 2]")
@session.json_option
def doctor(host: str | None, deeply: bool, nproc: int | None, as_json: bool) -> int:
    """Say whether HOST (all hosts without it) is fit to train, and what to do where it is not.

    A host that is unfit is exit 5, one that cannot be asked exit 4.
    """
    known = session.load()
    chosen = [known.host(host)] if host is not None else list(known.hosts.values())
    with ThreadPoolExecutor(max_workers=16) as pool:
        reports = list(pool.map(lambda one: _examine(one, known, deeply=deeply, nproc=nproc), chosen))
    if as_json:
        session.print_json([_row(report) for report in reports])
    else:
        for report in reports:
            _show(report)
    if any(report.error for report in reports):
        return int(next(report.error.code for report in reports if report.error))
    return int(Exit.HOST_NOT_READY if any(report.verdict is Verdict.UNFIT for report in reports) else Exit.OK)


def _examine(host: Host, known: Inventory, *, deeply: bool, nproc: int | None) -> Report:
    try:
        with connect(host, known) as transport, connect(known.host("local"), known) as here:
            mine = session.ends(transport, here, known).here
            paths = environment.markers(mine) if deeply else []
            cuda = built_for(mine.envs / "cuda.lock")
            image = host.image or f"{images.NAME}:cuda"
            own = images.inspect(here, image)
            labels = " ".join(own.labels.get(f"org.minimind.{name}", "") for name in ("cuda", "driver")) if own else ""
            report = examine(transport, cuda=cuda, others=targets(host, known), paths=paths, image=image, labels=labels)
            if not deeply or report.facts is None:
                return report
            site = environment.Site(
                here=mine,
                transport=transport,
                laptop=here,
                host=host,
                inventory=known,
                facts=report.facts,
                present=report.present,
            )
            return dataclasses.replace(report, checks=(*report.checks, *deep.examine(site, nproc=nproc)))
    except LaunchError as error:
        return Report(host=host.name, error=error)


def _row(report: Report) -> dict[str, Any]:
    error = report.error
    said = (
        None
        if error is None
        else {"what": error.what, "why": error.why, "remedy": error.remedy, "code": int(error.code)}
    )
    checks = [dataclasses.asdict(check) for check in report.checks]
    return {"host": report.host, "verdict": report.verdict or "unreachable", "checks": checks, "error": said}


def _show(report: Report) -> None:
    click.echo(f"{report.host}: {report.verdict or 'cannot be asked'}")
    if report.error is not None:
        paragraph(report.error)
    checklist([(str(check.verdict), check.name, check.found, check.remedy) for check in report.checks])
