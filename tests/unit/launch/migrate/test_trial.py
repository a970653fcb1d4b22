"""The trial is the real run in small: what it changes, and what it must not."""

from launch import flags
from launch.migrate import numbers
from launch.migrate.trial import trial_spec
from minimind.rundir import RunSpec


def spec(stage: str, *words: str) -> RunSpec:
    return RunSpec(
        run_id="20260101-120000-dpo-abcd",
        stage=stage,
        flags=["--save_dir", "/r/out", "--tokenizer", "/r/out/tokenizer", *words],
        nproc=1,
        executor="venv",
        name="mine",
        secret_names=["WANDB_API_KEY"],
    )


def tried(before: RunSpec) -> RunSpec:
    return trial_spec(before, run_id="20260102-120000-dpo-0000", nproc=8, steps=2, save_dir="/r/.migrate/smoke/out")


def test_weights_go_aside_and_those_it_starts_from_are_still_found():
    words = tried(spec("dpo", "--hidden_size", "64", "--epochs", "9", "--save_interval", "500")).flags
    assert flags.value_of(words, "save_dir") == "/r/.migrate/smoke/out"
    assert flags.value_of(words, "from_weight") == "/r/out/full_sft_64.pth"
    assert [flags.value_of(words, name) for name in ("max_steps", "save_interval", "epochs")] == ["2", "2", "3"]
    assert flags.value_of(tried(spec("pretrain")).flags, "from_weight") is None
    assert flags.value_of(tried(spec("dpo", "--from_weight", "/w/x.pth")).flags, "from_weight") == "/w/x.pth"
    teacher = flags.value_of(tried(spec("distillation")).flags, "teacher_weight")
    assert teacher == "/r/out/full_sft_768.pth"


def test_batch_and_accumulation_stay_and_nobody_outside_hears_of_it():
    found = tried(spec("dpo", "--batch_size", "4", "--accumulation_steps", "2", "--use_wandb", "--from_resume", "1"))
    assert flags.value_of(found.flags, "batch_size") == "4" and flags.value_of(found.flags, "accumulation_steps") == "2"
    assert not flags.is_on(found.flags, "use_wandb") and flags.value_of(found.flags, "from_resume") is None
    assert (found.nproc, found.name, found.secret_names) == (8, None, [])


def test_the_rate_is_the_median_of_the_last_whole_lines():
    text = b"".join(b'{"step": %d, "tokens_per_s": %d}\n' % (n, 1 if n < 50 else 100 + n % 3) for n in range(1, 151))
    assert numbers.rate_of(text + b'{"step": 151, "tok') == 101
    assert numbers.rate_of(b"") is None and numbers.rate_of(b'{"step": 1}\n') is None


def test_what_is_not_known_is_said_so():
    known = {
        "host": "gpu1",
        "nproc": 1,
        "samples_per_step": 32,
        "steps_per_epoch": 1000,
        "learning_rate": [5e-4, 5e-5],
        "tokens_per_s": 1000.0,
        "epoch_s": 3600.0,
        "epoch_cost": 2.0,
        "currency": "CNY",
    }
    rows = {name: rest for name, *rest in numbers.lines({"before": known, "after": {**known, "epoch_s": None}})}
    assert rows["seconds an epoch"] == ["3,600.0", "not known"]
    assert rows["learning rate"] == ["0.0005 to 5e-05", "0.0005 to 5e-05"]
    assert rows["cost of an epoch"] == ["2 CNY", "2 CNY"]
    assert numbers.lines({"before": None, "after": known}) == []
