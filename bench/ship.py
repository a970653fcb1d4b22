"""What does it cost to bring the training image to a host: everything at first, and after a change of code only?

Against `docker save | zstd | ssh docker load`, in the same run, to a second real engine behind a network of its own, on
the plain link and on 100 Mbit made with tc. Bytes are those that the interface counted, ssh and TCP included; seconds
include packing and loading. The far engine begins empty. 1 % of the image's bytes is the limit for a change of code.
Needs root, Docker, ip, tc, zstd and the image (`make image`).
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests import conftest  # noqa: E402
from tests.support import engine, image_build, sshd  # noqa: E402
from tests.support.docker import docker, engine_available  # noqa: E402

LIMIT = 0.01
HERE, THERE = "10.231.77.1", "10.231.77.2"
CHANGED = "minimind-bench-ship:changed"


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def changed_code(reference: str, folder: pathlib.Path) -> None:
    """The same image with another layer of code, as after a commit."""
    told = json.loads(docker("image", "inspect", reference).stdout)[0]
    client = shutil.which("docker")
    base = image_build.archive.Base(
        name="base",
        diff_ids=tuple(told["RootFS"]["Layers"][:-1]),
        architecture=told["Architecture"],
        os=told["Os"],
        variant=told.get("Variant", ""),
        digest="sha256:base",
    )
    container = docker("create", reference).stdout.strip()
    try:
        source = f"{container}:/opt/minimind/lib/python3.11/site-packages/minimind"
        with subprocess.Popen([client, "cp", source, "-"], stdout=subprocess.PIPE) as copy:
            layer = image_build.layers.write(folder / "code.tar", [("/opt/minimind/changed", copy.stdout)])
    finally:
        docker("rm", container)
    steps = [image_build.archive.Step(diff_id=layer.diff_id, told="changed code")]
    config = image_build.archive.configuration(base, steps, {}, created="2026-01-01T00:00:00Z")
    image_build.archive.load(client, config, CHANGED, {layer.diff_id: layer})


class Link:
    """A pair of interfaces between this machine and the network of the far engine; counts what goes there."""

    def __init__(self, pid: int) -> None:
        run("ip", "link", "add", "mmship0", "type", "veth", "peer", "name", "mmship1", "netns", str(pid))
        run("ip", "addr", "add", f"{HERE}/30", "dev", "mmship0")
        run("ip", "link", "set", "mmship0", "up")
        for words in (f"addr add {THERE}/30 dev mmship1", "link set mmship1 up", "link set lo up"):
            run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", *words.split())

    def limit(self, rate: str | None) -> None:
        subprocess.run(["tc", "qdisc", "del", "dev", "mmship0", "root"], check=False, stderr=subprocess.DEVNULL)
        if rate:
            run(*f"tc qdisc add dev mmship0 root tbf rate {rate} burst 256kb latency 200ms".split())

    @property
    def sent_bytes(self) -> int:
        return int(pathlib.Path("/sys/class/net/mmship0/statistics/tx_bytes").read_text())

    def close(self) -> None:
        subprocess.run(["ip", "link", "del", "mmship0"], check=False)


def measured(link: Link, command: list[str], **options) -> dict[str, float]:
    before, began = link.sent_bytes, time.monotonic()
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, **options)
    if done.returncode:
        raise SystemExit(f"{command} ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return {"bytes": link.sent_bytes - before, "seconds": time.monotonic() - began}


def by_hand(home, reference: str) -> list[str]:
    user, _, _ = home.sshd.address.partition("@")
    ssh = f"ssh -F /dev/null -i {home.sshd.user_key} -p {home.sshd.port} -o StrictHostKeyChecking=no -o LogLevel=ERROR"
    known = f"-o UserKnownHostsFile={home.home.parent / 'known'}"
    pipe = f"docker save {reference} | zstd -T0 -3 -q | {ssh} {known} {user}@{THERE} 'zstd -dcq | docker load -q'"
    return ["bash", "-o", "pipefail", "-c", pipe]


def serve(folder: pathlib.Path, far: engine.Engine, pid: int) -> sshd.Sshd:
    """A server inside the far network."""
    folder.mkdir(mode=0o700)
    user_key, host_key = sshd.make_key(folder / "user_key"), sshd.make_key(folder / "host_ed25519")
    options = ("-o", f"ListenAddress={THERE}", "-o", "Port=2222", "-o", "PidFile=none", "-o", "UsePAM=no")
    trust = ("-o", f"AuthorizedKeysFile={user_key}.pub", "-o", "StrictModes=no", "-o", "PermitRootLogin=yes")
    environ = ("-o", f"SetEnv=DOCKER_HOST={far.socket}", "-h", str(host_key), "-f", "/dev/null")
    command = ["nsenter", f"--net=/proc/{pid}/ns/net", sshd.BINARY, "-D", "-e", *options, *trust, *environ]
    pathlib.Path("/run/sshd").mkdir(exist_ok=True)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(1)
    return sshd.Sshd(folder, 2222, user_key, {"ed25519": host_key}, process)


def make_home(folder: pathlib.Path, server: sshd.Sshd) -> conftest.SshHome:
    home = conftest.make_ssh_home(folder, server)
    for name in ("launch.toml", "launch.known_hosts"):
        path = home.home / name
        path.write_text(path.read_text().replace("127.0.0.1", THERE))
    home.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    return home


def question(reference: str, rates: list[str | None]) -> list[dict[str, object]]:
    rows = []
    with tempfile.TemporaryDirectory(prefix="mmship") as name, engine.engine() as far:
        folder, pid = pathlib.Path(name), int((far.folder / "pid").read_text())
        changed_code(reference, folder)
        link = Link(pid)
        server = serve(folder / "server", far, pid)
        home = make_home(folder, server)
        launch = [sys.executable, "-m", "launch", "ship-image", "gpu8", "--image"]
        options = {"cwd": home.home, "env": home.environ}
        try:
            for rate in rates:
                link.limit(rate)
                for what, image, fresh in (("first", reference, True), ("changed code", CHANGED, False)):
                    if fresh:
                        far.empty()
                        shutil.rmtree(folder / "cache", ignore_errors=True)
                    ours = measured(link, [*launch, image], **options)
                    if fresh:
                        far.empty()
                    else:
                        far.docker("rmi", CHANGED)
                    theirs = measured(link, by_hand(home, image))
                    rows.append({"link": rate or "plain", "shipment": what, "launch": ours, "by_hand": theirs})
                    print_row(rows[-1])
        finally:
            server.stop()
            link.close()
            docker("rmi", CHANGED, check=False)
    return rows


def print_row(row: dict) -> None:
    ours, theirs = row["launch"], row["by_hand"]
    print(
        f"{row['link']:>8} {row['shipment']:<13} launch {ours['bytes'] / 1e6:9.2f} MB {ours['seconds']:6.1f} s"
        f"   by hand {theirs['bytes'] / 1e6:9.2f} MB {theirs['seconds']:6.1f} s"
        f"   bytes x{ours['bytes'] / theirs['bytes']:.4f}, time x{ours['seconds'] / theirs['seconds']:.2f}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", default="minimind-launch:cpu", help="what is shipped")
    parser.add_argument("--links", nargs="+", default=["plain", "100mbit"], help="`plain`, or a rate as tc spells it")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    missing = engine.MISSING or sshd.MISSING or ("" if engine_available() else "no Docker engine answers")
    lacking = [tool for tool in ("ip", "tc", "zstd", "nsenter") if shutil.which(tool) is None]
    if missing or lacking or docker("image", "inspect", options.image, check=False).returncode:
        print(f"not measured: {missing or ' '.join(lacking) or f'there is no image {options.image}'}", file=sys.stderr)
        return 0
    size = json.loads(docker("image", "inspect", options.image).stdout)[0]["Size"]
    print(f"{options.image}: {size / 1e6:.0f} MB; load of this machine {os.getloadavg()[0]:.1f}")
    rows = question(options.image, [None if link == "plain" else link for link in options.links])
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"image_bytes": size, "rows": rows}, indent=2))
    share = max(row["launch"]["bytes"] / size for row in rows if row["shipment"] == "changed code")
    print(f"a change of code costs {share:.3%} of the image's bytes (at most {LIMIT:.0%})")
    return 0 if share <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
