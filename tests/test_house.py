"""The house, as tests: what prose promises and a linter cannot see."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
BUDGETS = {
    "minimind/model.py": 450,
    "minimind/stages": 90,
    "launch/cli": 120,
    "launch/argv": 120,
}  # lines; 300 elsewhere
HEAVY = {"torch", "numpy", "wandb", "docker", "fabric", "paramiko", "rich"}


def budget(path: pathlib.Path) -> int:
    rel = path.relative_to(ROOT).as_posix()
    return max((lines for prefix, lines in BUDGETS.items() if rel.startswith(prefix)), default=300)


def test_a_file_fits_in_one_sitting():
    long = [
        f"{p.relative_to(ROOT)}: {n} lines, budget {budget(p)}"
        for package in ("launch", "minimind")
        for p in (ROOT / package).rglob("*.py")
        if (n := len(p.read_text().splitlines())) > budget(p)
    ]
    assert not long, "\n".join(long)


def test_the_laptop_reads_the_shared_files_without_anything_heavy():
    # import-linter does not see what a package's __init__ runs on the way to a submodule, so ask the interpreter.
    probe = "import sys, minimind.catalog, minimind.rundir; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(loaded.split())


def test_the_docker_folder_is_no_package():
    # docker/__init__.py would shadow the SDK for anyone who runs Python from the repository root.
    assert not (ROOT / "docker" / "__init__.py").exists()
