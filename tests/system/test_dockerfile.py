"""docker/Dockerfile, for builders that want one, and `make image` make the same files and settings."""

import json
import os
import re
import subprocess

import pytest

from tests.support import engine as engines
from tests.support.docker import ROOT, docker
from tests.support.image_build import archive, bases

TEXT = (ROOT / "docker" / "Dockerfile").read_text()
LOOK = (
    "cd / && find opt/minimind home/minimind etc/passwd etc/group -printf '%y %m %U:%G %p %l\\n' | sort; "
    "find opt/minimind etc/passwd etc/group -type f -print0 | sort -z | xargs -0 sha256sum"
)


def test_the_dockerfile_has_the_base_and_the_settings_of_the_image():
    assert f"ARG BASE_IMAGE={bases.DEFAULT_BASE}\n" in TEXT
    (told,) = re.findall(r"^ENV ((?:.*\\\n)*.*)$", TEXT, re.MULTILINE)
    assert dict(word.split("=", 1) for word in told.replace("\\\n", " ").split()) == archive.ENVIRONMENT
    assert json.dumps(archive.HEALTHCHECK["Test"][1:]) in TEXT


def nameless() -> set[str]:
    return set(docker("images", "--quiet", "--filter", "dangling=true").stdout.split())


@pytest.mark.docker
@pytest.mark.soak
def test_the_dockerfile_makes_the_very_files_of_the_image(training_image):
    made = engines.own("minimind-test-dockerfile:1")
    ours = json.loads(docker("image", "inspect", training_image).stdout)[0]["Config"]
    base = ours["Labels"]["org.opencontainers.image.base.name"]
    before = nameless()
    options = ("--tag", made, "--build-arg", f"BASE_IMAGE={base}")
    try:
        subprocess.run(
            ["docker", "build", "--network", "none", "-f", "docker/Dockerfile", *options, "."],
            cwd=ROOT,
            env={**os.environ, "DOCKER_BUILDKIT": "0"},
            check=True,
            timeout=280,
        )
        theirs = json.loads(docker("image", "inspect", made).stdout)[0]["Config"]
        for key in ("User", "Env", "Entrypoint", "WorkingDir", "Healthcheck"):
            assert theirs[key] == ours[key], key
        look = ("run", "--rm", "--network", "none", "--user", "0:0", "--entrypoint", "sh")
        one, other = (docker(*look, image, "-c", LOOK).stdout.splitlines() for image in (training_image, made))
        assert len(one) > 10_000 and sorted(set(one) ^ set(other)) == []
    finally:
        docker("rmi", "--force", made, *(nameless() - before), check=False)  # the stages stay behind without a name
