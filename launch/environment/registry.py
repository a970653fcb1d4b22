"""Bringing an image through a registry: pushed here, pulled on the host by its digest, compared there.

The engines move the layers and check their digests; what they say when they fail is for people, so what was wrong is
told from exit codes and from what the registry answers to anybody.
"""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Self

from launch.argv import registry as commands
from launch.environment.engine import Image, layer_sizes, look
from launch.environment.shipping import COPIES, Report, check_room, compare
from launch.errors import Exit, LaunchError
from launch.inventory import Host
from launch.secrets import Secret, Vault
from launch.transport import DryTransport, Transport
from launch.transport.base import Result, last_lines
from launch.voice import Voice

NOBODY, REFUSED = ("000",), ("401", "403")
REPOSITORY = "minimind-launch"


@dataclass(frozen=True, kw_only=True)
class Registry:
    """``address`` is a server and perhaps a folder on it; without ``user`` each engine uses the login that it has."""

    address: str
    user: str | None = None
    password: Secret | None = None

    @classmethod
    def of(cls, host: Host, vault: Vault | None) -> Self:
        """The registry of a host.

        Raises:
            LaunchError: INVALID when its secret was not found or may not be used.
        """
        name = host.registry_secret
        password = vault.pick([name])[name] if name and vault else None
        return cls(address=host.registry or "", user=host.registry_user, password=password)

    @property
    def server(self) -> str:
        """Name and port."""
        return self.address.partition("/")[0]

    @property
    def stdin(self) -> bytes:
        """What a login reads."""
        return self.password.reveal().encode() if self.password else b""


@dataclass(frozen=True, kw_only=True)
class Passage:
    """One image on its way to one host through a registry."""

    image: Image
    reference: str
    registry: Registry

    @property
    def name(self) -> str:
        """What the image is called in the registry: by its id, so that nothing is ever overwritten there."""
        repository = self.reference.rpartition("/")[2].partition("@")[0].partition(":")[0]
        own = REPOSITORY if repository in ("", "sha256") else repository.lower()
        return f"{self.registry.address}/{own}:{self.image.id.removeprefix('sha256:')[:16]}"

    def do(self, transport: Transport, laptop: Transport, voice: Voice) -> Report:
        """Bring it, or only write down the commands when the transports are dry.

        Raises:
            LaunchError: HOST_NOT_READY when the registry, a login or an engine stands in the way, NOT_VERIFIED when
                the host ends up with another image.
        """
        began_s, host = time.monotonic(), transport.host.name
        far = look(transport, "")
        have, layers = far.has(self.image.layers), len(self.image.layers)
        sizes = layer_sizes(laptop, self.image)[have:]
        plain_bytes = self.image.bytes if None in sizes else sum(size or 0 for size in sizes)
        check_room(host, far.engine_free_bytes, COPIES * plain_bytes, self.reference, place="its engine")
        server, user = self.registry.server, self.registry.user
        size = f"{self.image.bytes / 1e9:.2f} GB"
        voice.say(f"pushing {self.reference} ({size}) to {self.name}; {host} has {have} of its {layers} layers already")
        push = commands.push(self.image.id, self.name, server=server, user=user)
        dry = isinstance(transport, DryTransport)
        pushed = laptop.run(push, stdin=b"" if dry else self.registry.stdin, check=False)
        if pushed.code:
            raise self._trouble(pushed, "this machine", pushing=True)
        pinned = self._pinned(pushed) if not dry else f"{self.name.rpartition(':')[0]}@DIGEST"
        voice.say(f"{host} is pulling {pinned}")
        pull = commands.pull(pinned, self.reference, server=server, user=user)
        pulled = transport.run(pull, stdin=b"" if dry else self.registry.stdin, check=False)
        if pulled.code:
            look(transport, "")  # an engine that went away is another trouble
            raise self._trouble(pulled, host, pushing=False)
        arrived_id = self.image.id if dry else compare(transport, self.image, self.reference).id
        return Report(
            arrived_id=arrived_id,
            layers=layers,
            layers_sent=layers - have,
            sent_bytes=0,
            resumed_bytes=0,
            packed_bytes=0,
            seconds=time.monotonic() - began_s,
            pulled=pinned,
        )

    def _pinned(self, pushed: Result) -> str:
        """``name@digest``: what the engine here noted down when the registry had everything."""
        repository = self.name.rpartition(":")[0]
        told = pushed.text.splitlines()
        names = json.loads(told[-1]) if told else []
        mine = [str(name) for name in names or () if name.startswith(f"{repository}@sha256:")]
        if mine:  # several when it was pushed before, packed otherwise; the push just now printed its own
            now = re.findall(r"sha256:[0-9a-f]{64}", pushed.stderr.decode(errors="replace"))
            return next((name for name in mine if now and name.endswith(now[-1])), mine[-1])
        raise LaunchError(
            f"{self.registry.server} took the image and gave it no digest",
            why=f"the engine here knows no name of it in {repository}",
            remedy="run this again; without registry in launch.toml the image goes over ssh",
            code=Exit.NOT_VERIFIED,
        )

    def _trouble(self, result: Result, where: str, *, pushing: bool) -> LaunchError:
        server, said = self.registry.server, last_lines(result.stderr)
        answers = next((x.removeprefix("answers=") for x in result.text.splitlines() if x.startswith("answers=")), "")
        without = "without registry in launch.toml the image goes over ssh"
        if answers in NOBODY:
            what, remedy = f"the registry {server} cannot be reached from {where}", f"see to its network; {without}"
        elif result.code == commands.LOGIN_FAILED:
            what = f"the registry {server} does not let {self.registry.user} in"
            remedy = "correct registry_user or the secret that registry_secret names; see `launch secrets check`"
        elif answers in REFUSED and self.registry.user is None:
            what = f"the registry {server} wants a login from {where}"
            remedy = "set registry_user and registry_secret in launch.toml, or `docker login` there"
        else:
            what = f"{server} did not take the image" if pushing else f"{where} did not get the image from {server}"
            remedy = f"see to that and run this again, what has arrived is not moved twice; {without}"
        why = said or f"the command ended with code {result.code} and said nothing"
        return LaunchError(what, why=why, remedy=remedy, code=Exit.HOST_NOT_READY)
