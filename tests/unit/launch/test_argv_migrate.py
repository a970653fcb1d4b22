"""The commands that receive a move; what the scripts do is tested on a real host."""

from launch.argv import migrate, plan


def test_folders_are_arguments_and_names_come_on_stdin():
    assert migrate.parts("/a b/.migrate")[3:] == ["sh", "/a b/.migrate"]
    assert migrate.place("/a b", pack="ff")[3:] == ["sh", "/a b", "ff"]
    assert migrate.place("/a b")[3:] == ["sh", "/a b", ""]
    assert migrate.clean("/a b/.migrate")[3:] == ["sh", "/a b/.migrate"]
    assert migrate.answers_fast(7) == ["head", "-c", "7", "/dev/urandom"]


def test_a_plan_is_told_the_rate_that_was_measured():
    words = plan.of_run("dpo", ["--beta", "1"], nproc=8, run_dir="/r", read_only=True, tokens_per_s=1234567.8)
    assert words == [
        *("plan", "dpo", "--json", "--nproc", "8", "--tokens_per_s", "1.23457e+06", "--read_only", "--"),
        *("--beta", "1", "--run_dir", "/r"),
    ]
    assert "--tokens_per_s" not in plan.of_run("dpo", [], nproc=1, run_dir="/r", read_only=False)
