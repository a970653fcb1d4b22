"""What the doctor asks on top of the usual probe, in the same remote call, and its answers taken apart. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NETWORK = r"""
import os, socket, subprocess, sys, threading, time, urllib.parse, urllib.request

def port(name, host, number):
    begun = time.monotonic()
    try:
        socket.create_connection((host, int(number)), 4).close()
        return "%s %.0f" % (name, (time.monotonic() - begun) * 1000)
    except OSError as error:
        return "%s - %s" % (name, error.errno or type(error).__name__)

def web(name, url):
    parts = urllib.parse.urlsplit(url)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        request = urllib.request.Request(shown, method="HEAD", headers={"User-Agent": "minimind-launch"})
        urllib.request.urlopen(request, timeout=4).close()
        return "%s yes %s" % (name, shown)
    except urllib.error.HTTPError:
        return "%s yes %s" % (name, shown)
    except Exception as error:
        return "%s no %s" % (name, shown)

def index(name):
    ask = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    try:
        told = subprocess.run(ask, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        told = ""
    return web(name, (os.environ.get("PIP_INDEX_URL") or told or "https://pypi.org/simple").rstrip("/") + "/")

def tell(work, *args):
    print("net=" + work(*args).replace("\n", " "), flush=True)

hub = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
jobs = [(index, "index"), (web, "hub", hub)] + [(port, *line.split()) for line in sys.argv[1].splitlines()]
threads = [threading.Thread(target=tell, args=job, daemon=True) for job in jobs]
for thread in threads:
    thread.start()
deadline = time.monotonic() + 10
for thread in threads:
    thread.join(max(0, deadline - time.monotonic()))
"""
"""Python 3.6 or newer: which ports and which servers answer, all at once, in ten seconds at most."""

MORE = r"""
lines() { key=$1; shift; brief "$@" 2>/dev/null | while IFS= read -r line; do say "$key" "$line"; done; }
if brief "$python" -c '' 2>/dev/null; then
  "$python" -c "$network" "$targets" 2>/dev/null &
  say encoding "$(brief "$python" -c 'import sys; print(sys.getfilesystemencoding())' 2>/dev/null)"
fi
if have docker; then
  built='{{index .Config.Labels "org.minimind.cuda"}} {{index .Config.Labels "org.minimind.driver"}}'
  say image "$(brief docker image inspect --format "$built" "$image" 2>/dev/null)" &
fi
if have systemd-detect-virt; then say virt "$(brief systemd-detect-virt 2>/dev/null)"; fi
if grep -q '^flags.* hypervisor' /proc/cpuinfo 2>/dev/null; then say hypervisor 1; fi
if have nvidia-smi; then
  { brief nvidia-smi -q -x 2>/dev/null; echo "code $?"; } | while IFS= read -r line; do say smi "$line"; done &
  lines topo nvidia-smi topo -m &
  lines capability nvidia-smi --query-gpu=compute_cap --format=csv,noheader,nounits &
  brief nvidia-smi --query-compute-apps=pid --format=csv,noheader,nounits 2>/dev/null | while read -r pid; do
    case $pid in "" | *[!0-9]*) continue ;; esac
    if tr '\0' '\n' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF "$root/runs/"; then say our_pid "$pid"; fi
  done &
fi
pci=0
for device in /sys/bus/pci/devices/*; do
  if [ "$(cat "$device/vendor" 2>/dev/null)" = 0x10de ]; then
    case $(cat "$device/class" 2>/dev/null) in 0x0300* | 0x0302*) pci=$((pci + 1)) ;; esac
  fi
done
say pci_gpus "$pci"
if brief dmesg >/dev/null 2>&1; then
  say kernel_log 1
  brief dmesg 2>/dev/null | grep -F 'NVRM: Xid' | tail -n 50 | while IFS= read -r line; do say xid "$line"; done
fi
grep -ls nvidia.com/gpu /etc/cdi/* /var/run/cdi/* 2>/dev/null | while IFS= read -r line; do say cdi "$line"; done
lines disk df -Pk &
lines inodes df -Pi &
if [ -r /proc/mounts ]; then while IFS= read -r line; do say mount "$line"; done </proc/mounts; fi
say nofile "$(ulimit -S -n) $(ulimit -H -n)"
say memlock "$(ulimit -S -l 2>/dev/null) $(ulimit -H -l 2>/dev/null)"
if have rsync; then
  say rsync_version "$(brief rsync --version 2>/dev/null | head -n 1)"
  say rsync_package "$(brief dpkg-query -W -f '${Version}' rsync 2>/dev/null)"
fi
say ram "$(grep -s '^MemTotal:' /proc/meminfo | tr -dc 0-9)"
for file in /sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes; do
  if [ -r "$file" ]; then say ram_limit "$(cat "$file")"; fi
done
if [ -r /sys/fs/cgroup/cpu.max ]; then say cpu_max "$(cat /sys/fs/cgroup/cpu.max)"; fi
for device in /sys/class/infiniband/*; do if [ -e "$device" ]; then say infiniband "${device##*/}"; fi; done
"""


LONGEST = 4000
"""Of a value: a host may say anything, and Python refuses to read numbers of more than 4300 digits."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Another host of the inventory and where its ssh port is."""

    name: str
    address: str
    port: int


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What was told, by key, in order."""

    values: Mapping[str, Sequence[str]]

    def all(self, key: str) -> Sequence[str]:
        """Every value of the key."""
        return self.values.get(key, ())

    def one(self, key: str) -> str:
        """The first value, or ""."""
        return next(iter(self.all(key)), "")

    def number(self, key: str) -> float | None:
        """The first value as a number, None when it is none."""
        match = re.match(r"\d+(\.\d{1,9})?", self.one(key))
        return float(match[0]) if match else None

    def words(self, key: str) -> dict[str, list[str]]:
        """Values of the form ``name word word …``, by name."""
        split = [value.split() for value in self.all(key)]
        return {words[0]: words[1:] for words in split if words}


def more(targets: Sequence[Target], *, image: str) -> str:
    """The shell text to run after the usual probe; ``image`` is the one whose needs are asked for."""
    lines = "\n".join(f"{target.name} {target.address} {target.port}" for target in targets)
    given = {"targets": lines, "network": NETWORK, "image": image}
    return "".join(f"{name}={shlex.quote(text)}\n" for name, text in given.items()) + MORE


def parse(text: str) -> Answers:
    """Take the output apart; lines that are nobody's are left out."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and re.fullmatch(r"[a-z_]+", key):
            values.setdefault(key, []).append(value[:LONGEST].rstrip())
    return Answers(values=values)
