"""A way from the source straight to the target: what is large need not travel through the laptop.

For as long as a step needs it, the target lets in a key that was made on the source. It opens nothing but the appending
of contents that the move expects, whose sha256 decides whether they are believed. Whatever goes wrong with it, the way
through the laptop is there.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from launch.argv import bridge as argv
from launch.argv import migrate, ship
from launch.errors import Exit, LaunchError
from launch.migrate.cargo import Item
from launch.migrate.move import Move
from launch.migrate.upload import BUSY_S, arrived
from launch.transport import hostkeys, openssh
from launch.transport.ssh import open_connection

LEAST_BYTES = 8 << 20
"""Less than that is through the laptop before a key is made."""
LASTS_S = 2 * 86_400
"""A key that nobody took back ends by itself."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a content lies on the source, by its absolute path there."""

    path: str
    length_bytes: int


class Bridge:
    """An open way for the contents that were named when it was opened."""

    def __init__(self, move: Move, origins: Mapping[str, Origin], client: list[str]) -> None:
        self._move, self._origins, self._client = move, origins, client
        self._folder = f"{move.target_root}/{migrate.FOLDER}"
        self._up = True
        self.carried_bytes = 0

    def carry(self, item: Item, moved: Callable[[int], None]) -> bool:
        """Bring one content into the target's folder, from where an earlier attempt ended; tells whether it is there.

        Raises:
            LaunchError: UNREACHABLE when the laptop's own connection to one of them broke.
        """
        origin = self._origins.get(item.sha256)
        if origin is None or not self._up:
            return False
        deadline = time.monotonic() + BUSY_S
        begun, told = self._come(item), 0
        while True:
            code, told = self._send(item, origin, begun, moved, told)
            if code == 0:
                moved(item.length_bytes - told)
                self.carried_bytes += item.length_bytes - begun
                return True
            if code not in (ship.BUSY, ship.OFFSET_DIFFERS) or time.monotonic() > deadline:
                break
            time.sleep(0.5)  # what a killed launcher left notices soon that nobody sends any more
            begun = self._come(item)
        moved(-told)
        self._up = code == ship.TORN  # only this content is not what it was
        source, target = self._move.asked.source.name, self._move.asked.target.name
        self._move.voice.say(
            f"{item.target} did not come from {source} as it was hashed there: it goes through this machine"
            if self._up
            else f"the way from {source} to {target} broke (exit code {code}): the rest goes through this machine"
        )
        return False

    def _come(self, item: Item) -> int:
        come, _ = arrived(self._move.target, self._folder, item.sha256)
        return come if come < item.length_bytes else 0

    def _send(
        self, item: Item, origin: Origin, begun: int, moved: Callable[[int], None], told: int
    ) -> tuple[int | None, int]:
        """One attempt: the exit code over there, None when it was cut off, and how far it was told to have come."""
        code, text = None, b""
        words = argv.send(origin.path, begun, item.sha256, self._client)
        with contextlib.closing(self._move.source.stream(words)) as chunks:
            try:
                for chunk in chunks:
                    *lines, text = (text + chunk).split(b"\n")
                    for line in lines:
                        match line.split():
                            case [b"code", number]:
                                code = int(number)
                            case [number] if number.isdigit() and told < int(number) <= item.length_bytes:
                                moved(int(number) - told)
                                told = int(number)
            except LaunchError as error:
                if error.code == Exit.UNREACHABLE:
                    raise
        return code, told


def possible(move: Move) -> bool:
    """Whether neither of the two is this machine: then one may be let in by the other, and may have been before."""
    return move.asked.source.ssh is not None and move.asked.target.ssh is not None


@contextlib.contextmanager
def opened(move: Move, origins: Mapping[str, Origin]) -> Iterator[Bridge | None]:
    """Open a way for these contents (by sha256), and close it; None when there is none, which is said.

    Nothing is tried when too little would go over it, or when one of the two is this machine. What a killed launcher
    left open is closed first.
    """
    if move.journal.bridged:
        close(move)
    source, target = move.asked.source, move.asked.target
    total_bytes = sum(origin.length_bytes for origin in origins.values())
    if not possible(move) or total_bytes < LEAST_BYTES:
        yield None
        return
    move.journal.bridging(True)
    made = None
    try:
        try:
            made = _open(move, origins)
            move.voice.say(f"{source.name} reaches {target.name}: {total_bytes / 1e9:.2f} GB go straight there")
        except LaunchError as error:
            move.voice.say(f"{source.name} does not reach {target.name} ({error.why}): copies go through this machine")
        yield made
    finally:
        with contextlib.suppress(LaunchError):  # a lost connection is told by what lost it; a later attempt tidies up
            close(move)


def close(move: Move) -> None:
    """Take the key back and remove what served it; nothing happens where there is nothing.

    Raises:
        LaunchError: when the target cannot be asked.
    """
    move.target.run(argv.admit(_tag(move)))
    move.target.run(migrate.clean(f"{move.target_root}/{migrate.FOLDER}/bridge"))
    with contextlib.suppress(LaunchError):  # it may be gone; half of a key that nobody takes is no secret
        folder = f"{move.source_root}/{migrate.FOLDER}"
        move.source.run(migrate.clean(f"{folder}/bridge"))
        move.source.run(["rmdir", folder], check=False)
    move.journal.bridging(False)


def _tag(move: Move) -> str:
    return f"minimind-launch-migrate-{move.asked.source.name}"


def _open(move: Move, origins: Mapping[str, Origin]) -> Bridge:
    target = move.asked.target
    sender, receiver = (f"{root}/{migrate.FOLDER}" for root in (move.source_root, move.target_root))
    keys = hostkeys.known(move.inventory.known_hosts, hostkeys.server_name(target, move.inventory))
    lines = "".join(f"{target.name} {key.line.partition(' ')[2]}" for key in keys)
    told = move.source.run(argv.make_key(f"{sender}/bridge"), stdin=lines.encode()).text.split()
    if len(told) < 2 or told[0] != "ssh-ed25519" or not re.fullmatch(r"[A-Za-z0-9+/=]+", told[1]):
        raise _no_way("its ssh-keygen does not say a key")
    until = time.strftime("%Y%m%d%H%M", time.gmtime(time.time() + LASTS_S))
    line = argv.line(f"{told[0]} {told[1]}", receiver, until=until, tag=_tag(move))
    if line is None:
        raise _no_way(f"{receiver} cannot stand in authorized_keys")
    contents = ((digest, origin.length_bytes) for digest, origin in origins.items())
    for name, data in argv.files(contents).items():
        move.target.publish(f"{receiver}/bridge/{name}", data)
    move.target.run(argv.admit(_tag(move)), stdin=line.encode())
    where = open_connection(target, move.inventory)
    client = openssh.between(
        f"{sender}/bridge", user=where.user, address=where.host, port=where.port, alias=target.name
    )
    answer = move.source.read([*client, "ready"], timeout_s=60, check=False)
    if answer.text.splitlines()[-1:] != ["ready"]:  # a login shell may have had its say before
        said = answer.stderr.decode("utf-8", "replace").strip().splitlines()
        raise _no_way(said[-1] if said else "it is not let in")
    return Bridge(move, origins, client)


def _no_way(why: str) -> LaunchError:
    return LaunchError("there is no way from host to host", why=why, remedy="-", code=Exit.HOST_NOT_READY)
