"""Build the training image, or a local base for it: ``build.py cpu``, ``build.py cuda``, ``build.py base``.

Wheels are collected outside the build, because build containers cannot reach an index everywhere: with this Python
where it is a 3.11 on Linux, else in a container of the base image. The build checks every hash again.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minimind.durable import sha256_file, tree_hash  # noqa: E402 (a script: it finds its repository first)

DEFAULT_BASE = "python:3.11-slim-bookworm"
LOCAL_BASE = "minimind-base:bookworm"
PULL_TIMEOUT_S = 300.0
ENGINE_TIMEOUT_S = 20.0


class CannotBuild(Exception):
    """Something that this machine lacks: one paragraph, exit 5."""

    def __init__(self, what: str, *, why: str, remedy: str) -> None:
        super().__init__(f"{what}\n  why: {why}\n  remedy: {remedy}")


def clients(environ: Mapping[str, str]) -> Iterator[str]:
    """Every docker client on PATH, ``$DOCKER`` first."""
    if named := environ.get("DOCKER"):
        yield named
    for folder in environ.get("PATH", "").split(os.pathsep):
        if os.access(path := os.path.join(folder, "docker"), os.X_OK):
            yield path


def builds_with_buildkit(version: str, *, has_buildx: bool) -> bool:
    """Whether a client of this version can: up to 22 BuildKit is built in, later it is the plugin buildx."""
    major = version.partition(".")[0]
    return has_buildx or (major.isdecimal() and int(major) < 23)


def said(command: Sequence[str], *, timeout_s: float = ENGINE_TIMEOUT_S) -> str | None:
    """What a command prints; None when it fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def choose_client() -> str:
    """A client that reaches an engine and can build with BuildKit.

    Raises:
        CannotBuild: when there is none.
    """
    unfit = []
    for client in clients(os.environ):
        version = said([client, "version", "--format", "{{.Client.Version}}"])
        if version is None:
            unfit.append(f"{client} reaches no engine")
        elif builds_with_buildkit(version, has_buildx=said([client, "buildx", "version"]) is not None):
            print(f"docker client: {client} {version}")
            return client
        else:
            unfit.append(f"{client} {version} has no buildx")
    raise CannotBuild(
        "no docker client here can build",
        why="; ".join(unfit) or "there is no docker on PATH",
        remedy="install and start Docker (Debian: apt install docker.io), or name a client: DOCKER=/path/to/docker",
    )


def choose_base(client: str, wanted: str | None) -> str:
    """The base to build on: what was asked for, else the default where it can be had, else one made here.

    Raises:
        CannotBuild: when none can be had.
    """
    for candidate in [wanted] if wanted else [DEFAULT_BASE, LOCAL_BASE]:
        if said([client, "image", "inspect", candidate]) is not None:
            return candidate
    name = wanted or DEFAULT_BASE
    print(f"pulling {name} ...", flush=True)
    if said([client, "pull", name], timeout_s=PULL_TIMEOUT_S) is not None:
        return name
    if wanted is None and shutil.which("mmdebstrap"):
        print("no registry gave it; making a base from Debian's packages", flush=True)
        return build_base(client)
    raise CannotBuild(
        f"the base image {name} is not here and cannot be pulled",
        why="no registry has it or none can be reached",
        remedy="`make base-image` makes one from Debian's packages; then run this again without BASE_IMAGE",
    )


def run(command: Sequence[str], **environ: str) -> None:
    """Run a step with its output in view.

    Raises:
        CannotBuild: when it fails.
    """
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environ)
    if done.returncode:
        raise CannotBuild(
            f"`{' '.join(command[:4])} ...` failed with exit code {done.returncode}",
            why="its output stands above",
            remedy="mend what it says and run the same again",
        )


def collect_wheels(client: str, base: str, lock: Path, wheelhouse: Path) -> None:
    """Fill the wheelhouse for Python 3.11 on Linux."""
    script, there = "envs/install.py", wheelhouse.relative_to(ROOT)
    arguments = [script, "--download", str(there), "--lock", str(lock.relative_to(ROOT))]
    if platform.system() == "Linux" and sys.version_info[:2] == (3, 11):
        return run([sys.executable, *arguments])
    as_me = ["--user", f"{os.getuid()}:{os.getgid()}", "--env", "HOME=/tmp", "--workdir", "/repository"]
    mounted = ["--volume", f"{ROOT}/envs:/repository/envs:ro", "--volume", f"{ROOT}/build:/repository/build"]
    return run([client, "run", "--rm", *as_me, *mounted, base, "python3", *arguments])


def build_wheel(dist: Path) -> Path:
    """Our own wheel, alone in its folder."""
    shutil.rmtree(dist, ignore_errors=True)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    run([sys.executable, "-I", "-m", "pip", "wheel", *options, "--wheel-dir", str(dist), str(ROOT)])
    return next(dist.glob("*.whl"))


def revision() -> str:
    """The commit, with ``-dirty`` when the tree differs from it."""
    commit = said(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    changed = said(["git", "-C", str(ROOT), "status", "--porcelain"])
    return f"{commit}{'-dirty' if changed else ''}" if commit else "unknown"


def labels_of(client: str, image: str) -> dict[str, str]:
    """An image's labels; none when it is not there."""
    return json.loads(said([client, "image", "inspect", "--format", "{{json .Config.Labels}}", image]) or "null") or {}


def build_image(client: str, flavour: str, wanted_base: str | None) -> None:
    """Build ``minimind-launch:<flavour>``, unless it is there with these very inputs."""
    tag, lock = f"minimind-launch:{flavour}", ROOT / "envs" / f"{flavour}.lock"
    dockerfile, context = ROOT / "docker" / "Dockerfile", ROOT / "build" / "image" / flavour
    context.mkdir(parents=True, exist_ok=True)
    base = choose_base(client, wanted_base)
    wheel = build_wheel(context / "dist")
    base_id = said([client, "image", "inspect", "--format", "{{.Id}}", base]) or ""
    inputs = "".join([base_id, *map(sha256_file, (dockerfile, lock, wheel))])
    labels = {
        "org.minimind.code": tree_hash(ROOT / "minimind"),
        "org.minimind.lock": sha256_file(lock),
        "org.minimind.inputs": hashlib.sha256(inputs.encode()).hexdigest(),
        "org.opencontainers.image.revision": revision(),
        "org.opencontainers.image.base.name": base,
    }
    if labels_of(client, tag).get("org.minimind.inputs") == labels["org.minimind.inputs"]:
        print(f"{tag} is up to date")
        return
    collect_wheels(client, base, lock, context / "wheelhouse")
    told = [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]
    named = ["--build-arg", f"BASE_IMAGE={base}", "--file", str(dockerfile), "--tag", tag]
    run([client, "build", "--progress", "plain", *told, *named, str(context)], DOCKER_BUILDKIT="1")
    print(f"{tag} is ready")


def build_base(client: str) -> str:
    """Make a base from Debian's packages, for machines that reach those but no registry."""
    if said([client, "image", "inspect", LOCAL_BASE]) is not None:
        print(f"{LOCAL_BASE} is there (to make it anew: {client} rmi {LOCAL_BASE})")
        return LOCAL_BASE
    if shutil.which("mmdebstrap") is None:
        raise CannotBuild("there is no mmdebstrap here", why="it makes the base", remedy="apt install mmdebstrap")
    with tempfile.TemporaryDirectory() as folder:
        archive = str(Path(folder) / "base.tar")
        packages = "--include=python3,python3-venv,ca-certificates"
        run(["mmdebstrap", "--quiet", "--variant=minbase", packages, "bookworm", archive], SOURCE_DATE_EPOCH="0")
        path = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        run([client, "import", "--change", path, archive, LOCAL_BASE])
    return LOCAL_BASE


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Build the training image or a local base for it.")
    parser.add_argument("what", choices=["cpu", "cuda", "base"])
    parser.add_argument("--base", help=f"the image to build on (default: {DEFAULT_BASE}, else {LOCAL_BASE})")
    options = parser.parse_args()
    (ROOT / "build").mkdir(exist_ok=True)
    try:
        client = choose_client()
        with (ROOT / "build" / "image.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if options.what == "base":
                build_base(client)
            else:
                build_image(client, options.what, options.base)
    except CannotBuild as error:
        sys.stderr.write(f"{error}\n")
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
