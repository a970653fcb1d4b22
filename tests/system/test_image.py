"""The training image as a host gets it: small at the end, nobody's root, and nothing in it but the runtime."""

import json
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from minimind.durable import sha256_file, tree_hash
from tests.support import image_build as parts
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
    (size, code), (_, dependencies), *_ = (line.split(" ", 1) for line in history.stdout.splitlines())
    assert code.endswith("install.sh code") and "dependencies" in dependencies
    assert int(size) < 2_000_000


def test_the_code_layer_made_anew_is_the_same_bytes(training_image, tmp_path):
    made = parts.make_code_layer(tmp_path / "anew")
    told = json.loads(docker("image", "inspect", training_image).stdout)[0]
    assert made.diff_id == told["RootFS"]["Layers"][-1]


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_builds_from_nothing_are_identical(training_image):
    command = [sys.executable, "docker/build.py", "cpu", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "identical, bit for bit" in done.stdout, done.stdout + done.stderr


def test_bytecode_is_used_without_asking_for_the_time_of_its_source(training_image):
    flags = "import struct, torch; print(struct.unpack('<I', open(torch.__cached__, 'rb').read()[4:8])[0])"
    assert inside(training_image, "python", "-c", flags).strip() == "1"


def test_the_engine_sees_a_container_without_a_run_as_healthy(training_image):
    told = json.loads(docker("image", "inspect", training_image).stdout)[0]["Config"]
    assert inside(training_image, *told["Healthcheck"]["Test"][1:]).strip() == "no supervisor"


def test_the_bill_of_materials_names_every_wheel_and_package_that_is_in_the_image(training_image):
    bill = json.loads((ROOT / "build" / "image" / "cpu" / "sbom.cdx.json").read_text())
    told = json.loads(docker("image", "inspect", training_image).stdout)[0]
    assert bill["metadata"]["component"]["version"] == told["Id"]
    wheels = {c["name"]: c for c in bill["components"] if c["purl"].startswith("pkg:pypi/")}
    lines = inside(training_image, "python", "-c", INSTALLED).splitlines()
    installed = {re.sub(r"[-_.]+", "-", name).lower(): v for name, v in (line.split("==") for line in lines)}
    assert {name: wheel["version"] for name, wheel in wheels.items()} == installed
    lock = (ROOT / "envs" / "cpu.lock").read_text()
    assert not [
        name for name, w in wheels.items() if name != "minimind-launch" and w["hashes"][0]["content"] not in lock
    ]
    packages = inside(training_image, "dpkg-query", "-f", "${Package} ${Version}\n", "-W").split("\n")
    debian = {f"{c['name']} {c['version']}" for c in bill["components"] if c["purl"].startswith("pkg:deb/")}
    assert debian == set(filter(None, packages))


def test_lock_ranges_and_image_agree(training_image):
    """What pyproject.toml allows, the lock pins; what the lock pins, the image has and says on its labels."""
    labels = json.loads(docker("image", "inspect", training_image).stdout)[0]["Config"]["Labels"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = [
        *project["dependencies"],
        *(r for extra in ("train", "track", "serve") for r in project["optional-dependencies"][extra]),
    ]
    lines = inside(training_image, "python", "-c", INSTALLED).splitlines()
    installed = {re.sub(r"[-_.]+", "-", name).lower(): v for name, v in (line.split("==") for line in lines)}
    for requirement in map(Requirement, ranges):
        version = installed[requirement.name]
        assert requirement.specifier.contains(version), requirement
        assert version.partition("+")[0] in names("cpu.lock")[requirement.name]
    assert labels["org.minimind.torch"] == installed["torch"] and labels["org.minimind.cuda"] == "none"
