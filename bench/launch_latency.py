"""What does `launch run` by ssh add before the trainer's first line, over the same torchrun typed by hand on the host?

Both train the same stage on the same tokenised data with the same interpreter on a loopback sshd. By hand means
`ssh host torchrun …` on a connection that is already open. Prints both medians and the difference; 1.5 s is the limit.
"""

import argparse
import json
import pathlib
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from tests.support import launching, sshd  # noqa: E402

LIMIT_S = 1.5
FLAGS = [*launching.TRAIN, "--max_steps", "1"]


def first_line_s(command: list[str], *, home) -> float:
    """Seconds until the first byte on stdout; the command then runs to its end."""
    start = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=home.home,
        env=home.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        first = process.stdout.read(1)
        taken = time.perf_counter() - start
        _, err = process.communicate()
    if not first or process.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {process.returncode}: {err.decode()}")
    return taken


def by_hand(home, control: pathlib.Path) -> list[str]:
    """torchrun as the supervisor types it, over a connection that is open already."""
    data, out = f"{home.root}/dataset/pretrain_hq.jsonl", f"{home.root}/out"
    torchrun = [sys.executable, "-u", "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    paths = ["--save_dir", out, "--data_path", data, "--tokenizer", f"{out}/tokenizer"]
    environ = ["env", f"PYTHONPATH={ROOT}", "PYTHONUNBUFFERED=1", "GLOO_SOCKET_IFNAME=lo"]
    words = [*environ, *torchrun, "--nproc-per-node", "1", "-m", "minimind", "pretrain", *paths, *FLAGS]
    return [*ssh(home, control), shlex.join(words)]


def ssh(home, control: pathlib.Path) -> list[str]:
    user, _, _ = home.sshd.address.partition("@")
    options = ["-F", "/dev/null", "-i", str(home.sshd.user_key), "-p", str(home.sshd.port)]
    options += [
        "-o",
        f"UserKnownHostsFile={shlex.quote(str(home.home / 'launch.known_hosts'))}",
        "-o",
        "LogLevel=ERROR",
    ]
    return ["ssh", *options, "-o", f"ControlPath={control}", f"{user}@127.0.0.1"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="how often each is started")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if sshd.MISSING:
        print(f"not measured: {sshd.MISSING}", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory(prefix="mm") as folder:
        server = sshd.start(pathlib.Path(folder) / "server")
        home = launching.make_home(pathlib.Path(folder), server)
        control = pathlib.Path(folder) / "c"
        launch = [sys.executable, "-m", "launch", "run", "pretrain", "--host", "gpu8", "--nproc", "1", "--", *FLAGS]
        master = [*ssh(home, control)[:-1], "-M", "-N", "-f", ssh(home, control)[-1]]
        subprocess.run(master, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            first_line_s(launch, home=home)  # sends code and data, tokenises
            taken: dict[str, list[float]] = {"by_hand_s": [], "launch_s": []}
            for _ in range(options.repeats):  # in turns, so that a busy moment hits both
                taken["by_hand_s"].append(first_line_s(by_hand(home, control), home=home))
                taken["launch_s"].append(first_line_s(launch, home=home))
        finally:
            subprocess.run([*ssh(home, control), "-O", "exit"], stderr=subprocess.DEVNULL, check=False)
            server.stop()
    medians = {name: statistics.median(values) for name, values in taken.items()}
    ratio = medians["launch_s"] / medians["by_hand_s"]
    added_s = medians["launch_s"] - medians["by_hand_s"]
    if options.json:
        print(json.dumps({**medians, "added_s": added_s, "ratio": ratio, "limit_s": LIMIT_S}))
    else:
        print(f"torchrun by hand   {medians['by_hand_s']:6.2f} s to the first line")
        print(f"launch run         {medians['launch_s']:6.2f} s to the first line")
        print(f"added              {added_s:6.2f} s    (at most {LIMIT_S}); ratio {ratio:.2f}")
    return 0 if added_s <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
