"""Rules of the project that a test can check: layers, layout, wording, sizes, and each option said once."""

from __future__ import annotations

import ast
import functools
import graphlib
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TOP_LEVEL = {"srpo_robot", "datasets", "policies", "hardware", "scripts", "tests"}
SOURCES = (*sorted(ROOT.glob("srpo_robot/**/*.py")), *sorted(ROOT.glob("scripts/*.py")))
CLI = tuple(path for path in SOURCES if path.parent == ROOT / "srpo_robot" / "cli")
MAX_PARAMETERS = 8
MAX_POSITIONAL_FIELDS = 5
Function = ast.FunctionDef | ast.AsyncFunctionDef


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: the list of tracked files is unknown")
    output = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / line for line in output.stdout.splitlines() if (ROOT / line).is_file()]


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


@functools.cache
def tree(path: Path) -> tuple[ast.AST, ...]:
    """Returns all syntax nodes of a file."""
    return tuple(ast.walk(ast.parse(path.read_text())))


def nodes(*kinds: type[ast.AST], paths: tuple[Path, ...] = SOURCES) -> Iterator[tuple[Path, ast.AST]]:
    """Yields each syntax node of these kinds with the path of its file."""
    for path in paths:
        yield from ((path, node) for node in tree(path) if isinstance(node, kinds))


def failure_lines(lines: Iterable[str]) -> str:
    """Returns the lines for a failure message, which pytest shortens if it compares lists."""
    return "\n" + "\n".join(lines)


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"  # a module's node has no line


def test_functions_fit_on_a_screen():
    long = []
    for path, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, Function)
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > 80:
            long.append(f"{path.relative_to(ROOT)}:{node.name} ({lines})")
    assert not long, failure_lines(long)


def is_typer_command(path: Path, node: Function) -> bool:
    """Returns whether Typer calls this function of cli/app.py itself, with one parameter per option."""
    if path != ROOT / "srpo_robot" / "cli" / "app.py":
        return False
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(re.match(r"app[.](command|callback)\b", decorator) for decorator in decorators)


def test_functions_have_at_most_eight_parameters():
    guilty = []
    for path, node in nodes(ast.FunctionDef, ast.AsyncFunctionDef):
        assert isinstance(node, Function)
        names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        if count > MAX_PARAMETERS and not is_typer_command(path, node):
            guilty.append(f"{place(path, node)} {node.name} has {count} parameters")
    assert not guilty, failure_lines(guilty)


def test_a_dataclass_of_more_than_five_fields_takes_them_by_keyword_only():
    guilty = []
    for path, node in nodes(ast.ClassDef):
        assert isinstance(node, ast.ClassDef)
        decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
        dataclass = [d for d in decorators if re.match(r"(dataclasses[.])?dataclass\b", d)]
        fields = [statement for statement in node.body if isinstance(statement, ast.AnnAssign)]
        count = sum(not ast.unparse(statement.annotation).startswith("ClassVar") for statement in fields)
        if dataclass and count > MAX_POSITIONAL_FIELDS and "kw_only=True" not in dataclass[0]:
            guilty.append(f"{place(path, node)} {node.name} has {count} fields")
    assert not guilty, failure_lines(guilty)


# --- imports


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Returns the modules of `modules` that the file imports anywhere: at its top, in functions, for type checkers."""
    names = set()
    for _, node in nodes(ast.ImportFrom, ast.Import, paths=(path,)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{place(path, node)} is a relative import"
            full = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= {name if name in modules else node.module for name in full}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & modules


def test_no_modules_import_each_other_in_a_circle():
    """TYPE_CHECKING and function-level imports count. The plugins are distributions of their own."""
    paths = [path for path in SOURCES if path.is_relative_to(ROOT / "srpo_robot") and "plugins" not in path.parts]
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p for p in paths}
    graph = {name: imported_modules(path, set(modules)) - {name} for name, path in modules.items()}
    assert sum(map(len, graph.values())) > len(graph)  # the imports were read
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"circle: {' <- '.join(error.args[1])}")


# --- words


@functools.cache
def words(path: Path) -> list[str]:
    """Returns the words of all docstrings and comments of a file, in lower case."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in tree(path) if isinstance(node, kinds)]
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    texts += [token.string.lstrip("#") for token in tokens if token.type == tokenize.COMMENT]
    return re.findall(r"[a-z']+", " ".join(texts).lower())


def occurrences(word: str) -> tuple[float, list[str]]:
    """Returns how often `word` stands in 10,000 words of prose, and the files that use it most."""
    counts = Counter({str(path.relative_to(ROOT)): words(path).count(word) for path in SOURCES})
    total = sum(len(words(path)) for path in SOURCES)
    return 1e4 * counts.total() / total, [f"{name}: {count}" for name, count in counts.most_common(15) if count]


def test_docstrings_and_comments_rarely_use_where():
    rate, files = occurrences("where")
    assert rate < 30, f"'where' stands {rate:.0f} times in 10,000 words; write 'if' or 'when': {files}"


def test_docstrings_and_comments_use_if_for_conditions():
    rate, files = occurrences("if")
    assert rate > 20, f"'if' stands {rate:.0f} times in 10,000 words; most in {files}"


# --- options of the command line


def is_option(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) in ("typer.Option", "typer.Argument")


def option_aliases() -> set[str]:
    """Returns the names of types such as `Seed = Annotated[int, typer.Option(...)]`."""
    names = set()
    for _, node in nodes(ast.Assign, ast.TypeAlias, paths=CLI):
        assert isinstance(node, ast.Assign | ast.TypeAlias)
        if any(is_option(part) for part in ast.walk(node.value)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.name]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def declares_option(annotation: ast.expr | None, aliases: set[str]) -> bool:
    parts = ast.walk(annotation) if annotation is not None else ()
    return any(is_option(part) or (isinstance(part, ast.Name) and part.id in aliases) for part in parts)


def with_defaults(node: ast.arguments) -> Iterator[tuple[ast.arg, ast.expr]]:
    positional = [*node.posonlyargs, *node.args]
    yield from zip(positional[len(positional) - len(node.defaults) :], node.defaults, strict=True)
    yield from ((a, default) for a, default in zip(node.kwonlyargs, node.kw_defaults, strict=True) if default)


def test_the_help_text_of_each_option_stands_once():
    places = defaultdict(list)
    for path, node in nodes(ast.Call):
        if is_option(node):
            assert isinstance(node, ast.Call)
            text = next((ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "help"), None)
            places[text].append(place(path, node))
    assert len(places) > 50  # the options were read
    assert places.pop(None, []) == [], "an option without a help text"
    repeats = [f"{', '.join(calls)}: {text}" for text, calls in places.items() if len(calls) > 1]
    assert not repeats, failure_lines(repeats)


def test_the_default_of_each_option_stands_once():
    """A dataclass field that is no option itself must not repeat the default of an option of the same name."""
    aliases = option_aliases()
    options: dict[tuple[str, str], str] = {}  # (name, default) -> place
    fields: list[tuple[str, str, str]] = []
    for path, node in nodes(ast.arguments, ast.ClassDef, paths=CLI):
        if isinstance(node, ast.arguments):
            for argument, default in with_defaults(node):
                if declares_option(argument.annotation, aliases):
                    options[argument.arg, ast.unparse(default)] = place(path, argument)
        elif isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and line.value is not None and isinstance(line.target, ast.Name):
                    name, default = line.target.id, ast.unparse(line.value)
                    if declares_option(line.annotation, aliases):
                        options[name, default] = place(path, line)
                    else:
                        fields.append((name, default, place(path, line)))
    assert len(options) > 30  # the options were read
    repeats = [
        f"{field}: {name} = {default}, as the option at {options[name, default]}"
        for name, default, field in fields
        if (name, default) in options
    ]
    assert not repeats, failure_lines(repeats)


def test_real_time_tests_are_marked_and_run_alone():
    parts = re.compile(r"\b(ControllerServer|MockLab|CameraStreams|Cameras|soak[.]py)\b")
    in_real_time = [path.name for path in sorted((ROOT / "tests").glob("test_*.py")) if parts.search(path.read_text())]
    without_mark = [name for name in in_real_time if "pytest.mark.real_time" not in (ROOT / "tests" / name).read_text()]
    assert len(in_real_time) > 8 and without_mark == []
