"""A docker client that plays an engine, for builds without one: files tell what it refuses and what lies in it."""

import json
import os
import pathlib
import sys
import tarfile

from tests.support.image_build import archive, recipe

CLIENT = """#!{python} -IS
import fcntl, hashlib, io, json, pathlib, shutil, sys, tarfile, time

here = pathlib.Path(__file__).parent
words = sys.argv[1:]
with open(here / "calls", "a") as calls:
    calls.write(json.dumps(words) + chr(10))
images, told = (json.loads((here / name).read_text()) for name in ("images", "told"))
if words[0] in told["refuses"]:
    sys.exit(told["refuses"][words[0]])
if words[0] == "pull":
    time.sleep(told["silent_s"])
    images[words[1]] = dict(told["registry"], Id="sha256:pulled")
elif words[:2] == ["image", "inspect"]:
    if words[2] not in images:
        sys.exit("no such image")
    print(json.dumps([images[words[2]]]))
elif words[0] == "create":
    print("c1")
elif words[0] == "cp":
    with open(here / "one at a time", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with open(here / "tree.tar", "rb") as tree:
            shutil.copyfileobj(tree, sys.stdout.buffer)
elif words[0] == "run":
    print(told["packages"], end="")
elif words[0] == "load":
    (here / "bill at load").write_text(str((here / "image" / "sbom.cdx.json").exists()))
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as tar:
        files = {{m.name: tar.extractfile(m).read() for m in tar}}
    (manifest,) = json.loads(files.pop("manifest.json"))
    config = files.pop(manifest["Config"])
    for name, data in files.items():
        (here / name).write_bytes(data)
    image = json.loads(config)
    digest = "sha256:" + hashlib.sha256(config).hexdigest()
    layers = {{"Layers": image["rootfs"]["diff_ids"]}}
    images[manifest["RepoTags"][0]] = {{"Id": digest, "Config": image["config"], "RootFS": layers}}
elif words[0] == "save":
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as tar:
        for layer in images[words[1]]["RootFS"]["Layers"][1:]:
            tar.add(here / (layer.removeprefix("sha256:") + ".tar"), arcname=layer + "/layer.tar")
(here / "images").write_text(json.dumps(images))
"""


class Played:
    """The engine's folder; ``client`` is what is run in the place of docker."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.client, self.image = folder, folder / "docker", folder / "image"
        self.client.write_text(CLIENT.format(python=sys.executable))
        self.client.chmod(0o755)
        (folder / "calls").write_text("")
        (folder / "images").write_text("{}")
        self.told = {"refuses": {}, "silent_s": 0, "packages": "", "registry": {}}
        self.tell()
        self.tree({"minimind/file": b"1"})
        for name in ("dist", "wheelhouse"):
            (self.image / name).mkdir(parents=True)
        self.wheel.write_bytes(b"a wheel")

    @property
    def wheel(self) -> pathlib.Path:
        return self.image / "dist" / "minimind_launch-1-py3-none-any.whl"

    def tell(self, **told) -> None:
        """Change what it answers."""
        self.told |= told
        (self.folder / "told").write_text(json.dumps(self.told))

    def tree(self, files: dict[str, bytes]) -> None:
        """What is in every path that is copied out of its containers."""
        with tarfile.open(self.folder / "tree.tar", "w") as tar:
            for name, data in files.items():
                (self.folder / "data").write_bytes(data)
                tar.add(self.folder / "data", arcname=name)

    def holds(self, **images: dict) -> None:
        """Give it images by name."""
        (self.folder / "images").write_text(json.dumps(images))

    def images(self) -> dict:
        return json.loads((self.folder / "images").read_text())

    def calls(self, *words: str) -> list[list[str]]:
        """What it was called with, of what begins with these words."""
        lines = map(json.loads, (self.folder / "calls").read_text().splitlines())
        return [line for line in lines if line[: len(words)] == [*words]]

    def recipe(self, **changes) -> recipe.Recipe:
        """A recipe for it, with a wheel and a base that are none."""
        named = {"name": "b", "digest": "sha256:b", "diff_ids": ("sha256:0",)}
        parts = {
            "client": os.fspath(self.client),
            "flavour": "cpu",
            "tag": "image:cpu",
            "base_name": "base:1",
            "base": archive.Base(**named, architecture="x", os="linux", variant=""),
            "lock": recipe.ROOT / "envs" / "cpu.lock",
            "wheel": self.wheel,
            "folder": self.image,
            "created": "2026-01-01T00:00:00Z",
        }
        return recipe.Recipe(**(parts | changes))
