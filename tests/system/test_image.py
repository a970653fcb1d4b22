"""The training image as a host gets it: small at the end, nobody's root, and nothing in it but the runtime."""

import importlib.util
import json
import pathlib
import re

import pytest

from minimind.durable import sha256_file, tree_hash
from tests.support.docker import docker

ROOT = pathlib.Path(__file__).parent.parent.parent
INSTALLED = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()), sep='\\n')"
pytestmark = pytest.mark.docker


def inside(image: str, *command: str, options: tuple[str, ...] = ()) -> str:
    return docker("run", "--rm", "--network", "none", *options, image, *command).stdout


def names(lock: str) -> dict[str, set[str]]:
    """Package -> the versions that a lock may install."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", (ROOT / "envs" / lock).read_text(), re.MULTILINE):
        found.setdefault(name, set()).add(version)
    return found


def test_a_container_is_nobodys_root(training_image):
    assert inside(training_image, "id", "-u").strip() == "1000"
    assert json.loads(docker("image", "inspect", training_image).stdout)[0]["Config"]["User"] == "minimind"


def test_the_trainers_answer_without_a_network(training_image):
    assert "pretrain" in inside(training_image, "python", "-m", "minimind", "--help")


def test_any_user_id_finds_a_name_and_a_home_it_can_write_to(training_image):
    probe = (
        "import getpass, pathlib, torch; pathlib.Path.home().joinpath('x').write_text('x'); print(getpass.getuser())"
    )
    assert inside(training_image, "python", "-c", probe, options=("--user", "4321:4321")).strip() == "minimind"


def test_only_the_runtime_of_the_lock_is_installed(training_image):
    installed = dict(line.split("==") for line in inside(training_image, "python", "-c", INSTALLED).splitlines())
    assert installed.pop("minimind-launch", None) or installed.pop("minimind_launch")
    assert installed.pop("torch") == f"{names('cpu.lock').pop('torch').pop()}+cpu"
    canonical = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in installed.items()}
    locked = names("cpu.lock")
    assert not {name: version for name, version in canonical.items() if version not in locked.get(name, ())}
    assert not canonical.keys() & (names("dev.lock").keys() - locked.keys())


def test_no_build_tools_and_no_leftovers(training_image):
    tools = "for tool in pip gcc cc g++ make git uv; do command -v $tool; done; true"
    assert inside(training_image, "sh", "-c", tools) == ""
    leftovers = "find / -xdev ( -name .cache -o -path /tmp/* -o -path /wheelhouse/* -o -path /dist/* ) -print"
    assert inside(training_image, *leftovers.split(), options=("--user", "0:0")) == ""


def test_the_labels_agree_with_the_tree(training_image):
    labels = json.loads(docker("image", "inspect", training_image).stdout)[0]["Config"]["Labels"]
    assert labels["org.minimind.code"] == tree_hash(ROOT / "minimind")
    assert labels["org.minimind.lock"] == sha256_file(ROOT / "envs" / "cpu.lock")
    assert labels["org.opencontainers.image.revision"]


def test_changed_code_costs_less_than_two_megabytes(training_image):
    history = docker("history", "--no-trunc", "--human=false", "--format", "{{.Size}} {{.CreatedBy}}", training_image)
    layers = [line.split(" ", 1) for line in history.stdout.splitlines()]
    code = next(index for index, (_, command) in enumerate(layers) if "/dist" in command)
    torch = next(index for index, (_, command) in enumerate(layers) if "/wheelhouse" in command)
    assert code < torch, "the newest layer comes first: our code lies above torch"
    assert sum(int(size) for size, _ in layers[: code + 1]) < 2_000_000


def test_a_client_without_buildkit_is_not_chosen():
    spec = importlib.util.spec_from_file_location("image_build", ROOT / "docker" / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert build.builds_with_buildkit("20.10.24+dfsg1", has_buildx=False)
    assert build.builds_with_buildkit("28.2.2", has_buildx=True)
    assert not build.builds_with_buildkit("28.2.2", has_buildx=False)
