"""How fast does a trained host come home: the first copy, nothing new, one changed file, the rest after a cut at 50 %?

Against the raw link (bytes through one TCP connection), `rsync -a`, `scp -r`, `rclone copy` and paramiko over sftp, in
one run, to a real sshd in a network namespace, on 200 Mbit made with tc and on the plain link. Bytes are those that the
interface counted, ssh and TCP included; ours hashes every byte on both sides and moves a content once that others move
under each of its names, so a share of the link is by the bytes that a tool moved. Limits: a first copy at 0.85 of the
raw 200 Mbit link, nothing new in under 1 s, less than 1 % sent again after the cut. Needs root, sshd, rsync, ip and tc.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests import conftest  # noqa: E402
from tests.support import sshd  # noqa: E402
from tests.support.syncing import RUN, make_run, put, sums_hold, tree  # noqa: E402

SPACE, HERE, THERE = "mmsync", "10.231.78.1", "10.231.78.2"
LEAST, NO_OP_S, SENT_AGAIN = 0.85, 1.0, 0.01
SERVE = """
import os, socket, sys
with socket.create_server((sys.argv[1], 5201)) as listening:
    print("ready", flush=True)
    client, left, block = listening.accept()[0], int(sys.argv[2]), os.urandom(1 << 20)
    while left > 0:
        client.sendall(block[:left])
        left -= len(block)
"""
SFTP = """
import os, stat, sys, paramiko
host, port, user, key, known_hosts, root, to = sys.argv[1:]
client = paramiko.SSHClient()
client.load_host_keys(known_hosts)
client.connect(host, int(port), user, key_filename=key)
sftp = client.open_sftp()
def walk(there, here):
    os.makedirs(here, exist_ok=True)
    for entry in sftp.listdir_attr(there):
        source, target = f"{there}/{entry.filename}", os.path.join(here, entry.filename)
        if stat.S_ISDIR(entry.st_mode):
            walk(source, target)
        elif not os.path.exists(target) or os.stat(target).st_mtime != entry.st_mtime:
            sftp.get(source, target)
            os.utime(target, (entry.st_mtime, entry.st_mtime))
walk(root, to)
"""


def run(command: str) -> None:
    subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)


class Link:
    """A network namespace for the far side, and the pair of interfaces that leads there; counts what comes back."""

    def __enter__(self) -> "Link":
        self.__exit__()
        run(f"ip netns add {SPACE}")
        run(f"ip link add mmsync0 type veth peer name mmsync1 netns {SPACE}")
        run(f"ip addr add {HERE}/30 dev mmsync0")
        run("ip link set mmsync0 up")
        for words in (f"addr add {THERE}/30 dev mmsync1", "link set mmsync1 up", "link set lo up"):
            run(f"ip -n {SPACE} {words}")
        return self

    def __exit__(self, *_: object) -> None:
        for words in ("link del mmsync0", f"netns del {SPACE}"):
            subprocess.run(["ip", *words.split()], check=False, stderr=subprocess.DEVNULL)

    def limit(self, rate: str | None) -> None:
        for prefix, device in (("", "mmsync0"), (f"ip netns exec {SPACE} ", "mmsync1")):
            delete = f"{prefix}tc qdisc del dev {device} root".split()
            subprocess.run(delete, check=False, stderr=subprocess.DEVNULL)
            if rate:
                run(f"{prefix}tc qdisc add dev {device} root tbf rate {rate} burst 256kb latency 200ms")

    @property
    def came_bytes(self) -> int:
        return int(pathlib.Path("/sys/class/net/mmsync0/statistics/rx_bytes").read_text())

    def raw(self, length_bytes: int) -> float:
        """Seconds for so many bytes through one TCP connection."""
        argv = ["ip", "netns", "exec", SPACE, sys.executable, "-c", SERVE, THERE, str(length_bytes)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as server:
            server.stdout.readline()
            began = time.monotonic()
            with socket.create_connection((THERE, 5201)) as client:
                while client.recv(1 << 20):
                    pass
            return time.monotonic() - began


class Contest:
    """The far side's files, and the commands that bring them to a folder each."""

    def __init__(self, folder: pathlib.Path, link: Link, server: sshd.Sshd, megabytes: int, tools: list[str]) -> None:
        self.folder, self.link = folder, link
        self.home = conftest.make_ssh_home(folder, server)
        for name in ("launch.toml", "launch.known_hosts"):
            path = self.home.home / name
            path.write_text(path.read_text().replace("127.0.0.1", THERE))
        self.root = self.home.root
        make_run(self.root, RUN, "rlhf_512.pth", os.urandom(megabytes * 500_000))
        put(self.root / "out" / "full_sft_512.pth", os.urandom(megabytes * 300_000))
        for number in range(494):
            put(self.root / "out" / "parts" / f"{number}.json", os.urandom(megabytes * 400))
        self.total_bytes = sum(path.stat().st_size for path in self.root.rglob("*") if path.is_file())
        kept = {key: value for key, value in self.home.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self.environ = {**kept, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
        user = server.address.partition("@")[0]
        known = folder / "known_hosts"  # the home's path has a space, which ssh's options split
        known.write_text((self.home.home / "launch.known_hosts").read_text())
        options = f"-F /dev/null -i {server.user_key} -o StrictHostKeyChecking=yes -o UserKnownHostsFile={known}"
        port, key = str(server.port), str(server.user_key)
        flags = ["--sftp-disable-hashcheck"]  # else a login shell for every file, minutes in all
        flags += ["--sftp-host", THERE, "--sftp-port", port, "--sftp-user", user, "--sftp-key-file", key]
        self.tools = {
            "rsync -a": ["rsync", "-a", "-e", f"ssh {options} -p {port}", f"{user}@{THERE}:{self.root}/", "TO"],
            "scp -r": ["scp", "-qr", *options.split(), "-P", port, f"{user}@{THERE}:{self.root}/.", "TO"],
            "rclone": ["rclone", "copy", f":sftp:{self.root}", "TO", *flags],
            "paramiko": [sys.executable, "-c", SFTP, THERE, port, user, key, str(known), str(self.root), "TO"],
            "launch": [sys.executable, "-m", "launch", "sync-out", "--to", "TO"],
        }
        if shutil.which("rclone") is None:
            del self.tools["rclone"]
        self.tools = {tool: argv for tool, argv in self.tools.items() if tool.split()[0] in (*tools, "launch")}
        self.do("launch", "warm", "--dry-run")  # bytecode

    def start(self, tool: str, to: str, *more: str) -> subprocess.Popen:
        target = self.folder / to
        target.mkdir(exist_ok=True)
        argv = [str(target) if word == "TO" else word for word in self.tools[tool]]
        return subprocess.Popen(
            [*argv, *more],
            cwd=self.home.home,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def do(self, tool: str, to: str, *more: str) -> dict[str, float]:
        before, began = self.link.came_bytes, time.monotonic()
        process = self.start(tool, to, *more)
        said = process.communicate()[1]
        if process.returncode:
            raise SystemExit(f"{tool} ended with {process.returncode}: {said.decode()[-2000:]}")
        return {"seconds": time.monotonic() - began, "bytes": self.link.came_bytes - before}

    def cut(self, tool: str, to: str, *, after_bytes: float) -> float:
        """Kill it when so many bytes have come; tells how many did."""
        before = self.link.came_bytes
        process = self.start(tool, to)
        while process.poll() is None and self.link.came_bytes - before < after_bytes:
            time.sleep(0.002)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        time.sleep(2)  # what it had started ends too
        return self.link.came_bytes - before

    def whole(self, to: str) -> bool:
        return tree(self.folder / to) == tree(self.root)


def question(contest: Contest, link: Link, rates: list[str | None]) -> list[dict]:
    rows = []
    for rate in rates:
        link.limit(rate)
        raw_s = link.raw(contest.total_bytes)
        put(contest.root / "out" / "lora" / "lora_x_512.pth", os.urandom(4_000_000))
        time.sleep(10.5)  # what a host wrote just now is hashed once more the next time
        for tool in contest.tools:
            to = f"{tool.split()[0]}-{rate}"
            row = {"link": rate or "plain", "tool": tool, "raw_seconds": raw_s, "first": contest.do(tool, to)}
            row["nothing new"] = min((contest.do(tool, to) for _ in range(3)), key=lambda told: told["seconds"])
            rows.append(row)
        put(contest.root / "out" / "lora" / "lora_x_512.pth", os.urandom(4_000_000))
        for row in rows[-len(contest.tools) :]:
            to = f"{row['tool'].split()[0]}-{rate}"
            row["one changed"] = contest.do(row["tool"], to)
            row["whole"] = contest.whole(to) and (row["tool"] != "launch" or sums_hold(contest.folder / to))
            shutil.rmtree(contest.folder / to)
            came_bytes = contest.cut(row["tool"], to, after_bytes=row["first"]["bytes"] / 2)
            row["rest"] = contest.do(row["tool"], to)
            row["sent_again"] = (came_bytes + row["rest"]["bytes"]) / row["first"]["bytes"] - 1
            shutil.rmtree(contest.folder / to)
            print_row(row, contest.total_bytes)
    return rows


def filled(row: dict, total_bytes: int) -> float:
    """Which share of the raw link a first copy filled: what it moved (each content once, for launch) by its seconds."""
    first = row["first"]
    return min(first["bytes"], total_bytes) / total_bytes * row["raw_seconds"] / first["seconds"]


def print_row(row: dict, total_bytes: int) -> None:
    share = filled(row, total_bytes)
    parts = (f"{name} {row[name]['seconds']:6.2f} s {row[name]['bytes'] / 1e6:7.2f} MB" for name in MEASURED)
    print(
        f"{row['link']:>8} {row['tool']:<9} {' | '.join(parts)} | {share:.2f} of the raw link"
        f" ({total_bytes / row['raw_seconds'] / 1e6:.1f} MB/s), {row['sent_again']:+.2%} sent again"
        f"{'' if row['whole'] else ' NOT WHOLE'}",
        flush=True,
    )


TOOLS = ["rsync", "scp", "rclone", "paramiko"]
MEASURED = ("first", "nothing new", "one changed", "rest")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--links", nargs="+", default=["200mbit", "plain"], help="`plain`, or a rate as tc spells it")
    parser.add_argument("--megabytes", type=int, default=200, help="what the host has, in about 500 files")
    parser.add_argument("--tools", nargs="+", default=TOOLS, choices=TOOLS, help="what is measured beside launch")
    parser.add_argument("--json", metavar="FILE", help="also write the figures there")
    options = parser.parse_args()
    lacking = [tool for tool in ("ip", "tc", "rsync", "scp") if shutil.which(tool) is None]
    missing = sshd.MISSING or ("" if os.geteuid() == 0 else "needs root") or " ".join(lacking)
    if missing:
        print(f"not measured: {missing}", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory(prefix="mmsync") as name, Link() as link:
        folder = pathlib.Path(name)
        (folder / "user").mkdir()  # of no start files: what a shell does first is paid by every command of every tool
        options_of_sshd = f"Subsystem sftp internal-sftp\nSetEnv HOME={folder}/user"
        server = sshd.start(folder / "server", address=THERE, netns=SPACE, options=options_of_sshd)
        try:
            contest = Contest(folder, link, server, options.megabytes, options.tools)
            load = os.getloadavg()[0]
            print(f"{contest.total_bytes / 1e6:.0f} MB in {len(tree(contest.root))} files; load {load:.1f}")
            rows = question(contest, link, [None if link == "plain" else link for link in options.links])
        finally:
            server.stop()
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"bytes": contest.total_bytes, "rows": rows}, indent=2))
    ours = [row for row in rows if row["tool"] == "launch"]
    verdicts = {
        f"a first copy at {LEAST} of a slow raw link": all(
            filled(row, contest.total_bytes) >= LEAST for row in ours if row["link"] != "plain"
        ),
        f"nothing new in under {NO_OP_S:g} s": all(row["nothing new"]["seconds"] < NO_OP_S for row in ours),
        f"less than {SENT_AGAIN:.0%} sent again": all(row["sent_again"] < SENT_AGAIN for row in ours),
        "whole": all(row["whole"] for row in ours),
    }
    for what, kept in verdicts.items():
        print(f"{'kept' if kept else 'MISSED'}: {what}")
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
