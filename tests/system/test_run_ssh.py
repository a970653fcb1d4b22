"""`launch run` on a real sshd, with the venv executor: runs that end, fail, are left, stopped and taken up again."""

import json
import os
import signal

import pytest

from tests.support import launching
from tests.support.launching import LONG, TRAIN, log_of, rows, run_dirs, steps_of, wait_for

pytestmark = pytest.mark.sshd


@pytest.fixture
def home(tmp_path, sshd):
    made = launching.make_home(tmp_path, sshd)
    yield made
    launching.end_all(made)


def test_two_ranks_train_to_the_end_and_the_next_stage_starts_from_their_weights(home):
    done = home.launch("run", "pretrain", "--host", "gpu8", "--nproc", "2", "--name", "first", "--", *TRAIN)
    assert done.returncode == 0, done.stderr
    (run_dir,) = run_dirs(home)
    assert done.stdout == log_of(run_dir).read_text()
    spec = json.loads((run_dir / "spec.json").read_bytes())
    assert {item["path"] for item in spec["inputs"]} == {
        f"{home.root}/{name}"
        for name in (
            "dataset/pretrain_hq.jsonl",
            "out/tokenizer/tokenizer.json",
            "out/tokenizer/tokenizer_config.json",
        )
    }
    assert (run_dir / "spec.json").stat().st_mode & 0o777 == 0o444
    assert run_dir.stat().st_mode & 0o777 == 0o700
    assert (home.root / "out" / "pretrain_64.pth").is_file()

    tuned = home.launch("run", "full_sft", "--host", "gpu8", "--", *TRAIN, "--max_steps", "1")
    assert tuned.returncode == 0, tuned.stderr
    first, second = rows(home)
    assert (first["state"], first["name"], first["nproc"], first["executor"]) == ("SUCCEEDED", "first", 2, "venv")
    assert (second["state"], second["stage"], second["last_step"]) == ("SUCCEEDED", "full_sft", 1)
    assert second["loss"] > 0
    inputs = json.loads((run_dirs(home)[1] / "spec.json").read_bytes())["inputs"]
    assert f"{home.root}/out/pretrain_64.pth" in {item["path"] for item in inputs}


def test_a_broken_line_17_ends_in_exit_6_and_names_the_line(home):
    data = home.home / "broken.jsonl"
    lines = (home.home / "dataset" / "pretrain_hq.jsonl").read_text().splitlines()
    data.write_text("\n".join([*lines[:16], '{"text": ', *lines[16:]]) + "\n")
    done = home.launch("run", "pretrain", "--host", "gpu8", "--data", "broken.jsonl", "--", *TRAIN)
    assert done.returncode == 6
    assert "broken.jsonl:17" in done.stderr and "why:" in done.stderr and "remedy:" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (row,) = rows(home)
    assert (row["state"], row["reason"]) == ("FAILED", "data_invalid")
    assert len(list((home.root / "inputs").glob("*/broken.jsonl"))) == 1


@pytest.mark.parametrize(
    "moment", [pytest.param("as soon as it is started", marks=pytest.mark.soak), "while it is followed"]
)
def test_a_killed_launcher_leaves_the_run_going_and_another_folder_follows_it_byte_for_byte(home, tmp_path, moment):
    launcher = launching.start(home, "run", "pretrain", "--host", "gpu8", "--", *TRAIN, "--epochs", "12")
    (run_dir,) = wait_for(lambda: [d for d in run_dirs(home) if (d / "handle.json").exists()])
    if moment == "while it is followed":
        assert launcher.stdout.read(20)
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.communicate()

    elsewhere = tmp_path / "another folder"
    elsewhere.mkdir()
    inventory = str(home.home / "launch.toml")
    followed = launching.start(home, "--inventory", inventory, "logs", "-f", run_dir.name, cwd=elsewhere)
    out, err = followed.communicate(timeout=120)
    assert followed.returncode == 0, err
    assert out == log_of(run_dir).read_bytes()
    assert [row["state"] for row in rows(home)] == ["SUCCEEDED"]


def test_ctrl_c_detaches_stop_saves_and_resume_goes_on_where_it_stopped(home):
    launcher = launching.start(home, "run", "pretrain", "--host", "gpu8", "--", *LONG)
    (run_dir,) = wait_for(lambda: run_dirs(home))
    wait_for(lambda: steps_of(run_dir) >= 2)
    os.killpg(launcher.pid, signal.SIGINT)
    _, err = launcher.communicate(timeout=30)
    assert launcher.returncode == 130
    assert f"launch logs -f {run_dir.name}" in err.decode() and f"launch stop {run_dir.name}" in err.decode()
    assert [row["state"] for row in rows(home)] == ["RUNNING"]
    refused = home.launch("resume", "last")
    assert refused.returncode == 9 and "alive" in refused.stderr

    stopped = home.launch("stop", "last", "--json")
    assert stopped.returncode == 0, stopped.stderr
    row = json.loads(stopped.stdout)
    assert row["state"] == "STOPPED" and row["last_step"] >= 2
    assert "already STOPPED" in home.launch("stop", run_dir.name).stderr

    resumed = home.launch("resume", run_dir.name[:15], "--nproc", "2", "--detach", "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert f"{row['last_step']:,} are done" in resumed.stderr
    wait_for(lambda: steps_of(run_dir) > row["last_step"] + 1)
    (alive,) = rows(home)
    assert (alive["state"], alive["attempt"], alive["nproc"]) == ("RUNNING", 2, 2)
    assert not (run_dir / "stop").exists()

    killed = home.launch("stop", "last", "--now")
    assert killed.returncode == 0, killed.stderr
    assert [row["state"] for row in rows(home)] == ["STOPPED"]
    ended = home.launch("logs", "-f", "last")
    assert ended.returncode == 10 and "launch resume" in ended.stderr


@pytest.mark.parametrize("count", [4, pytest.param(10, marks=pytest.mark.soak)])
def test_of_racers_for_one_name_one_starts_a_run_and_the_others_are_told_who_holds_it(home, count):
    args = ("run", "pretrain", "--host", "gpu8", "--name", "race", "--detach", "--", *LONG)
    racers = [launching.start(home, *args) for _ in range(count)]
    ended = [(racer.communicate(timeout=200), racer.returncode) for racer in racers]
    codes = sorted(code for _, code in ended)
    assert codes == [0] + [9] * (count - 1), [err for (_, err), _ in ended]
    (run_dir,) = run_dirs(home)
    for (out, err), code in ended:
        if code == 0:
            assert out.decode().strip() == run_dir.name
        else:
            assert run_dir.name in err.decode() and "@" in err.decode() and "remedy:" in err.decode()


def test_a_link_cut_while_following_neither_loses_nor_repeats_a_byte(tmp_path):
    from tests.support import sshd as sshd_parts

    if sshd_parts.MISSING:
        pytest.skip(sshd_parts.MISSING)
    server = sshd_parts.start(tmp_path / "server")
    home = launching.make_home(tmp_path, server)
    try:
        launcher = launching.start(home, "run", "pretrain", "--host", "gpu8", "--", *TRAIN, "--epochs", "40")
        (run_dir,) = wait_for(lambda: run_dirs(home))
        wait_for(lambda: steps_of(run_dir) >= 2)
        server.cut()
        out, err = launcher.communicate(timeout=120)
        assert launcher.returncode == 0, err
        assert b"is back, going on at byte" in err
        assert out == log_of(run_dir).read_bytes()
    finally:
        launching.end_all(home)
        server.stop()
