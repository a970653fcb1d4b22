"""Docker command lines, word for word."""

from launch.argv import docker, images

RUN = {
    "name": "minimind-R-a1",
    "image_id": "sha256:abc",
    "run_id": "R",
    "token": "t",
    "run_dir": "/a b/runs/R",
    "root": "/a b",
    "uid": 1000,
    "gid": 100,
    "nproc": 2,
    "gpus": False,
    "networked": False,
}
PLAIN = [
    *("docker", "run", "--detach", "--init", "--pull", "never", "--name", "minimind-R-a1"),
    *("--label", "org.minimind.run_id=R", "--label", "org.minimind.token=t"),
    *("--network", "none", "--user", "1000:100", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--shm-size", str(2 << 30)),
    *("--log-driver", "json-file", "--log-opt", "max-size=10m", "--log-opt", "max-file=2"),
    *("--stop-timeout", "330", "--env", "HOME=/tmp", "--env", "USER=minimind"),
    *("--mount", 'type=bind,"source=/a b","target=/a b"'),
    *("sha256:abc", "--run_dir", "/a b/runs/R"),
]


def test_a_run_has_no_network_no_rights_and_one_folder():
    assert docker.run(**RUN) == PLAIN


def test_gpus_network_and_another_number_of_ranks_are_given_only_when_asked_for():
    words = docker.run(**RUN | {"gpus": True, "networked": True}, nproc_override=4)
    wanted = list(PLAIN)
    wanted[wanted.index("none")] = "bridge"
    mount = wanted.index("--mount")
    assert words == [*wanted[:mount], "--gpus", "all", *wanted[mount:], "--nproc", "4"]


def test_files_outside_the_root_are_mounted_read_only_and_a_comma_is_no_separator():
    words = docker.run(**RUN, readonly=["/data/a,b.jsonl"])
    place = words.index('type=bind,"source=/data/a,b.jsonl","target=/data/a,b.jsonl",readonly')
    assert words[place - 1] == "--mount"


def test_the_other_commands():
    assert docker.container_name("R", 3) == "minimind-R-a3"
    assert docker.containers()[:4] == ["docker", "ps", "--all", "--no-trunc"]
    assert docker.remove("n") == ["docker", "rm", "n"]
    assert docker.kill("n") == ["sh", "-c", docker.KILL, "sh", "n"]
    assert docker.logs("n", lines=5) == ["docker", "logs", "--tail", "5", "n"]
    assert images.image("i")[-1] == "i"
    assert images.history("i") == ["docker", "history", "--human=false", "--format", "{{.Size}}", "i"]
