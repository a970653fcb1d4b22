"""Regenerate every lock in envs/ (`make lock`): complete, hashed, naming no machine and no index.

``cpu.lock``    the runtime on Linux and macOS, Python 3.11 to 3.13, with the CPU build of torch
``cuda.lock``   the same versions with the CUDA build of torch, Linux
``dev.lock``    what the extra ``dev`` and dev.in need on top of cpu.lock
``build.lock``  what builds our own wheel
``tools.lock``  programs that tests use where they are, and skip without

PyPI lists torch's CUDA build for Linux under the very version that the CPU build has, so the torch entries are made
here: each wheel is named in a comment, which install.py reads to know what this lock has for a Python. The sha256 of a
``+cpu`` wheel comes from a folder of PIP_FIND_LINKS, from PyTorch's CPU index where that answers, or from the lock as
it was.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

ENVS = Path(__file__).resolve().parent
ROOT = ENVS.parent
SUPPORTED = re.compile(r"torch-.*-cp31[123]-cp31[123]-.*(manylinux|macosx).*\.whl")
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SYSTEM_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/ssl/cert.pem")
CUDA_ONLY = re.compile(r"(nvidia-|cuda-|triton$)")
ELSEWHERE = re.compile(r"; [^()]*sys_platform == '(win32|emscripten)'$")
NAMED_HASH = re.compile(r"^# (torch-\S+\.whl) sha256:([0-9a-f]{64})$", re.MULTILINE)
COMPILE = ("pip", "compile", "--quiet", "--universal", "--python-version=3.11", "--generate-hashes", "--no-annotate")
RUNTIME = ("pyproject.toml", "--extra", "train", "--extra", "track", "--extra", "serve")

Entries = dict[str, list[str]]  # requirement line without its hashes -> the whole entry as lines


def main() -> int:
    """Write the locks."""
    parser = argparse.ArgumentParser(description="Regenerate envs/*.lock.")
    parser.add_argument("--uv", default=str(Path(sys.executable).with_name("uv")), help="the uv to run")
    uv = [parser.parse_args().uv, *COMPILE]
    with tempfile.TemporaryDirectory() as folder:
        excludes, constraint = Path(folder) / "excludes.txt", Path(folder) / "runtime.txt"
        everywhere = compiled([*uv, *RUNTIME, "envs/cpu.in"])
        excludes.write_text("".join(f"{name}\n" for name in map(name_of, everywhere) if CUDA_ONLY.match(name)))
        cpu = compiled([*uv, *RUNTIME, "envs/cpu.in", "--excludes", str(excludes)])
        torch = next(requirement for requirement in cpu if name_of(requirement) == "torch")
        pypi = wheels_of(uv, torch) or {}
        cpu_wheels = {name: digest for name, digest in pypi.items() if "macosx" in name} | cpu_builds(uv, torch)
        cpu[torch] = torch_entry(torch, cpu_wheels)
        constraint.write_text("".join(f"{requirement}\n" for requirement in cpu))
        cuda = compiled([*uv, *RUNTIME, "envs/cuda.in", "--constraint", str(constraint)])
        cuda[torch] = torch_entry(torch, {name: digest for name, digest in pypi.items() if "manylinux" in name})
        without = ("--constraint", str(constraint), "--excludes", str(excludes))  # peft asks for torch, which is there
        dev = compiled([*uv, "pyproject.toml", "--extra", "dev", "envs/dev.in", *without])
        build = compiled([*uv, "envs/build.in"])
        tools = compiled([*uv, "envs/tools.in"])
    write("cpu.lock", "The runtime with the CPU build of torch: Linux and macOS, Python 3.11 to 3.13.", cpu)
    write("cuda.lock", "The runtime of cpu.lock with the CUDA build of torch: Linux, Python 3.11 to 3.13.", cuda)
    on_top = {r: lines for r, lines in dev.items() if r not in cpu and r.split(" ;")[0] not in cpu}
    write("dev.lock", "What tests and linters need on top of cpu.lock.", on_top)
    write("build.lock", "What builds our own wheel and the editable install.", build)
    write("tools.lock", "Programs for some tests, in a folder of their own.", tools)
    return 0


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run uv in the repository, with the system's certificates: uv's own know no company proxy."""
    bundle = next((b for b in SYSTEM_BUNDLES if Path(b).exists()), None)
    environ = ({"SSL_CERT_FILE": bundle} if bundle else {}) | {"UV_HTTP_TIMEOUT": "30"} | os.environ
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True)


def compiled(command: list[str]) -> Entries:
    """The entries that uv prints, without those that only other systems need."""
    done = run([*command, "--no-header"])
    if done.returncode:
        sys.exit(f"uv could not resolve:\n{done.stderr.strip()}")
    entries: Entries = {}
    entry: list[str] = []
    for line in done.stdout.splitlines():
        if not line.startswith((" ", "#")):
            entry = entries.setdefault(line.removesuffix("\\").strip(), [])
        entry.append(line)
    return {requirement: lines for requirement, lines in entries.items() if not ELSEWHERE.search(requirement)}


def name_of(requirement: str) -> str:
    """``jinja2==3.1 ; marker`` -> ``jinja2``."""
    return re.split(r"[=\[ ;]", requirement, maxsplit=1)[0]


def wheels_of(uv: list[str], requirement: str, *options: str) -> dict[str, str] | None:
    """File name -> sha256 of the wheels that an index has of one release; None when it cannot be asked."""
    with tempfile.TemporaryDirectory() as folder:
        wanted, found = Path(folder) / "wanted.in", Path(folder) / "pylock.toml"
        wanted.write_text(requirement)
        if run([*uv, "--no-deps", *options, str(wanted), "--output-file", str(found)]).returncode:
            return None
        package = tomllib.loads(found.read_text())["packages"][0]
    named = {urllib.parse.unquote(Path(w["url"]).name): w["hashes"]["sha256"] for w in package["wheels"]}
    return {name: digest for name, digest in named.items() if SUPPORTED.fullmatch(name)}


def cpu_builds(uv: list[str], torch: str) -> dict[str, str]:
    """File name -> sha256 of the ``+cpu`` wheels for Linux that can be known here."""
    known = dict(NAMED_HASH.findall((ENVS / "cpu.lock").read_text())) if (ENVS / "cpu.lock").exists() else {}
    of_index = wheels_of(uv, f"{torch}+cpu", "--index-url", PYTORCH_CPU_INDEX)
    folders = [Path(p) for p in os.environ.get("PIP_FIND_LINKS", "").split() if Path(p).is_dir()]
    on_disk = {p.name: p for folder in folders for p in folder.glob("torch-*.whl")}
    prefix = f"{torch.replace('==', '-')}+cpu-"
    wheels = {name: digest for name, digest in (known | (of_index or {})).items() if name.startswith(prefix)}
    for name, path in on_disk.items():
        if name.startswith(prefix) and SUPPORTED.fullmatch(name):
            with path.open("rb") as file:
                wheels[name] = hashlib.file_digest(file, "sha256").hexdigest()
    print(
        f"{torch}: {len(wheels)} +cpu wheels known; {PYTORCH_CPU_INDEX} {'answered' if of_index else 'did not answer'}"
    )
    return wheels


def torch_entry(requirement: str, wheels: Mapping[str, str]) -> list[str]:
    """The torch entry of a lock, its wheels named above it."""
    hashes = [f"    --hash=sha256:{digest}" for digest in sorted(set(wheels.values()))]
    named = [f"# {name} sha256:{digest}" for name, digest in sorted(wheels.items())]
    return [*named, requirement + " \\", *(line + " \\" for line in hashes[:-1]), hashes[-1]]


def write(name: str, title: str, entries: Entries) -> None:
    """Write one lock."""
    lines = [f"# {title}", "# Generated by `make lock` from pyproject.toml and envs/*.in; do not edit.", ""]
    for entry in entries.values():
        lines += entry
    (ENVS / name).write_text("\n".join(lines) + "\n")
    print(f"envs/{name}: {len(entries)} packages")


if __name__ == "__main__":
    sys.exit(main())
