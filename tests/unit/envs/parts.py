"""Small wheels, a lock of them and an index that serves them: everything install.py meets, made in milliseconds."""

import atexit
import base64
import ensurepip
import functools
import hashlib
import http.server
import importlib.util
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile

ROOT = pathlib.Path(__file__).parent.parent.parent.parent
SCRIPT = ROOT / "envs" / "install.py"


def load(name: str):
    """A script of envs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"envs_{name}", ROOT / "envs" / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


install = load("install")
HERE = install.this_target()
TAGS = f"cp{HERE.python}-cp{HERE.python}-manylinux_2_17_{HERE.machine}"


def wheel(
    folder: pathlib.Path,
    name: str,
    version: str,
    tags: str = "py3-none-any",
    *,
    body: str = "",
    entry_points: str = "",
) -> pathlib.Path:
    """Write a wheel with one module."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"__version__ = {version!r}\n{body}",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tags}\n",
        **({f"{info}/entry_points.txt": entry_points} if entry_points else {}),
    }
    record = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b'=').decode()},{len(text)}"
        for path, text in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""])
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tags}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in files.items():
            archive.writestr(zipfile.ZipInfo(member), text)
    return path


@functools.cache
def unpacked_pip() -> str | None:
    """The pip that this Python bundles, unpacked: `python -m venv` would take seconds to do the same every time."""
    bundled = [*pathlib.Path(ensurepip.__file__).parent.rglob("pip-*.whl")]
    bundled += pathlib.Path("/usr/share/python-wheels").glob("pip-*.whl")
    if not bundled:
        return None
    folder = tempfile.mkdtemp(prefix="pip-for-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with zipfile.ZipFile(bundled[0]) as archive:
        archive.extractall(folder)
    return folder


def sha256(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Shop:
    """Wheels of `torch` 9.9.9 and of `small` 1.0, and a lock that names them."""

    def __init__(self, folder: pathlib.Path, *, hash_known: bool = True) -> None:
        self.folder, self.wheels, self.lock = folder, folder / "wheels", folder / "cpu.lock"
        self.torch = wheel(self.wheels, "torch", "9.9.9+cpu", TAGS)
        self.small = wheel(self.wheels, "small", "1.0")
        self.venv = folder / "env"
        digest = sha256(self.torch) if hash_known else "0" * 64
        named = self.torch.name if hash_known else "torch-9.9.9+cpu-cp399-cp399-manylinux_2_17_x86_64.whl"
        self.lock.write_text(
            f"# A lock.\n\nsmall==1.0 \\\n    --hash=sha256:{sha256(self.small)}\n"
            f"# {named} sha256:{digest}\ntorch==9.9.9 \\\n    --hash=sha256:{digest}\n"
        )

    def command(self, *options: str) -> list[str]:
        pip = ["--pip-wheel", found] if (found := unpacked_pip()) else []
        return [sys.executable, str(SCRIPT), "--venv", str(self.venv), "--lock", str(self.lock), *pip, *options]

    def install(self, *options: str, **environ: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(*options), env=clean(**environ), capture_output=True, text=True, timeout=120, cwd=self.folder
        )

    def offline(self) -> list[str]:
        return ["--wheels", str(self.wheels), "--offline"]

    def version(self, module: str) -> str:
        command = [str(self.venv / "bin" / "python"), "-c", f"import {module}; print({module}.__version__)"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def clean(**environ: str) -> dict[str, str]:
    """No configuration of pip but what a test gives."""
    return {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PIP_CONFIG_FILE": "/dev/null", **environ}


class Index:
    """A package index on loopback that remembers what it was asked for."""

    def __init__(self, wheels: pathlib.Path) -> None:
        self.asked: list[str] = []
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                index.asked.append(self.path)
                *_, name, last = self.path.replace("%2B", "+").split("/")
                found = wheels / last
                page = "".join(f'<a href="/files/{p.name}">{p.name}</a>\n' for p in wheels.glob(f"{name}-*.whl"))
                known = found.is_file() if last else bool(page)
                data = (
                    b"" if not known else found.read_bytes() if last else f"<!DOCTYPE html><body>{page}</body>".encode()
                )
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "application/octet-stream" if last else "text/html")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Index":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
