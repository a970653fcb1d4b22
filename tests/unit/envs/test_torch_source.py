"""Where torch comes from, as a decision: no network, no clock."""

import os

import pytest

from tests.unit.envs.parts import ROOT, install

CPU = install.Lock.parse((ROOT / "envs" / "cpu.lock").read_text())
CUDA = install.Lock.parse((ROOT / "envs" / "cuda.lock").read_text())


def sources(lock, system, machine, python, *, configured=True, offline=False):
    target = install.Target(system=system, machine=machine, python=python)
    return install.torch_sources(lock, target, configured=configured, offline=offline)


def test_linux_looks_where_pip_is_told_and_then_on_pytorchs_index_by_hash():
    local, remote = sources(CPU, "Linux", "x86_64", "311")
    assert (local.pytorch_index, remote.pytorch_index) == (False, True)
    assert local.requirement == remote.requirement
    assert local.requirement.startswith(f"torch=={CPU.torch_version}+cpu --hash=sha256:")
    assert local.told == "by hash"


def test_linux_without_configuration_asks_only_pytorchs_index():
    assert [source.pytorch_index for source in sources(CPU, "Linux", "x86_64", "311", configured=False)] == [True]


@pytest.mark.parametrize(("machine", "python"), [("x86_64", "399"), ("riscv64", "311")])
def test_an_unknown_hash_means_the_exact_cpu_version_and_says_so(machine, python):
    for source in sources(CPU, "Linux", machine, python):
        assert source.requirement == f"torch=={CPU.torch_version}+cpu"
        assert "exact version" in source.told and machine in source.told


@pytest.mark.parametrize("python", ["311", "312", "313"])
def test_a_mac_takes_the_plain_wheel_by_hash(python):
    (source,) = sources(CPU, "Darwin", "arm64", python)
    assert source.requirement.startswith(f"torch=={CPU.torch_version} --hash=sha256:") and not source.pytorch_index
    assert source.requirement.count("--hash") == 1


@pytest.mark.parametrize("python", ["311", "312", "313"])
def test_the_cuda_lock_takes_the_plain_wheel_by_hash(python):
    (source,) = sources(CUDA, "Linux", "x86_64", python)
    assert source.requirement.startswith(f"torch=={CUDA.torch_version} --hash=sha256:") and not source.pytorch_index


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "x86_64"), ("Windows", "AMD64")])
def test_a_system_without_a_build_is_told_so(system, machine):
    with pytest.raises(install.CannotInstall, match=f"no build for {system} on {machine}"):
        sources(CPU, system, machine, "312")


def test_the_cuda_lock_is_not_for_a_mac():
    with pytest.raises(install.CannotInstall, match="no build for Darwin"):
        sources(CUDA, "Darwin", "arm64", "312")


def test_offline_asks_no_index():
    assert [source.pytorch_index for source in sources(CPU, "Linux", "x86_64", "312", offline=True)] == [False]


def test_nothing_of_the_users_pip_reaches_the_call_to_pytorchs_index_but_the_way_out():
    config = install.PipConfig(cert="/config.pem", proxy="http://proxy")
    environ = {
        "PATH": "/bin",
        "HTTPS_PROXY": "http://outer",
        "PIP_EXTRA_INDEX_URL": "https://evil",
        "PIP_FIND_LINKS": "/wheels",
        "PIP_CERT": "/environment.pem",
        "PYTHONPATH": "/elsewhere",
    }
    assert install.pip_environ(environ, config, pytorch_index=True) == {
        "PATH": "/bin",
        "HTTPS_PROXY": "http://outer",
        "PIP_CERT": "/environment.pem",
        "PIP_PROXY": "http://proxy",
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INPUT": "1",
    }


def test_elsewhere_the_users_pip_holds_but_for_what_would_lead_it_out_of_the_environment():
    environ = {"PIP_INDEX_URL": "https://mine", "PIP_USER": "1", "PIP_TARGET": "/t", "PYTHONPATH": "/elsewhere"}
    kept = install.pip_environ(environ, install.PipConfig(), pytorch_index=False)
    assert kept == {"PIP_INDEX_URL": "https://mine", "PIP_NO_INPUT": "1"}


def test_pips_own_listing_says_where_it_looks():
    listing = (
        "global.index-url='https://mirror/simple'\n"
        "global.extra-index-url='https://a/simple\\nhttps://b/simple'\n"
        "install.find-links='/wheels'\n:env:.find-links='/wheels'\nglobal.no-index='true'\nglobal.cert='/ca.pem'\nnonsense\n"
    )
    assert install.PipConfig.parse(listing) == install.PipConfig(
        index_url="https://mirror/simple",
        others=("https://a/simple", "https://b/simple", "/wheels"),
        no_index=True,
        cert="/ca.pem",
    )


@pytest.mark.parametrize("text", ["", "small==1.0 \\\n    --hash=sha256:00\n"])
def test_a_lock_without_torch_is_refused(text):
    with pytest.raises(install.CannotInstall, match="names no torch"):
        install.Lock.parse(text)
