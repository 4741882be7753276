"""The rules of the house that a machine can hold."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = {"srpo_robot", "datasets", "policies", "hardware", "scripts", "tests"}


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: the list of tracked files is unknown")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def test_the_rooms_keep_their_layers():
    result = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout


def test_the_top_level_is_the_fixed_one():
    folders = {path.relative_to(ROOT).parts[0] for path in tracked() if len(path.relative_to(ROOT).parts) > 1}
    assert {name for name in folders if not name.startswith(".")} <= TOP_LEVEL


@pytest.mark.parametrize("folder", ["datasets", "policies", "hardware"])
def test_recipe_folders_hold_recipes_and_pages_only(folder):
    names = {path.name for path in (ROOT / folder).iterdir() if path.name != "__pycache__"}
    assert "README.md" in names
    assert all(name.endswith((".md", ".toml")) for name in names)


def test_hugging_faces_datasets_imports_from_the_projects_root():
    script = "import datasets; print(datasets.__version__); assert 'site-packages' in datasets.__file__, datasets"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_no_tracked_file_names_a_registrys_host_or_a_path_of_one_machine():
    hosts = re.compile(r"pypi[.](org|python)|python" + r"hosted[.]org|registry[.]np" + r"mjs|/root" + r"/|/ho" + r"me/")
    guilty = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if path != Path(__file__) and hosts.search(text):
            guilty.append(str(path.relative_to(ROOT)))
    assert guilty == []


def test_an_arm_starts_without_torch_lerobot_or_the_buffer():
    script = (
        "import sys, srpo_robot.arm.arm, srpo_robot.arm.actions\n"
        "heavy = {'torch', 'lerobot', 'transformers', 'pyarrow', 'srpo_robot.buffer'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_functions_fit_on_a_screen():
    import ast

    long = []
    for path in [*ROOT.glob("srpo_robot/**/*.py"), *ROOT.glob("scripts/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 80:
                    long.append(f"{path.relative_to(ROOT)}:{node.name} ({lines})")
    assert long == []


def test_what_runs_in_real_time_is_marked_and_gets_the_machine_to_itself():
    parts = re.compile(r"\b(ControllerServer|MockLab|CameraStreams|Cameras|soak[.]py)\b")
    in_real_time = [path.name for path in sorted((ROOT / "tests").glob("test_*.py")) if parts.search(path.read_text())]
    unmarked = [name for name in in_real_time if "pytest.mark.real_time" not in (ROOT / "tests" / name).read_text()]
    assert len(in_real_time) > 8 and unmarked == []
