"""House rules that no linter knows, checked like any other behaviour."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["eventmeta", "projections"]
MODULES = [
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
]

MAX_MODULE_LINES = 300
MAX_FUNCTION_LINES = 60
DIALECTS = {"sqlite", "postgresql", "mysql", "mariadb"}

each_module = pytest.mark.parametrize("module", MODULES)


def parse(module: str) -> ast.Module:
    return ast.parse((ROOT / module).read_text(encoding="utf-8"), filename=module)


def run_python(code: str) -> None:
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@each_module
def test_module_is_short(module: str) -> None:
    lines = (ROOT / module).read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_MODULE_LINES, f"{module} has {lines} lines: split it by subject"


@each_module
def test_functions_are_short(module: str) -> None:
    long = [
        f"{module}:{node.lineno} {node.name} has {code_lines(node)} lines"
        for node in ast.walk(parse(module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if code_lines(node) > MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The function's lines without its docstring: explaining must not cost."""
    first, last = function.body[0], function.body[-1]
    lines = (last.end_lineno or last.lineno) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


@each_module
def test_public_module_has_a_docstring(module: str) -> None:
    if not any(is_private(part) for part in Path(module).with_suffix("").parts):
        assert ast.get_docstring(parse(module)), f"{module} does not say what it is for"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@each_module
def test_only_dialects_tell_databases_apart(module: str) -> None:
    if module.startswith("eventmeta/dialects"):
        return
    found = sorted(set(dialect_tests(parse(module))))
    assert not found, f"{module}, lines {found}: belongs in eventmeta/dialects/"


def dialect_tests(tree: ast.Module) -> Iterator[int]:
    """Lines with `….dialect.name` or a comparison with a database's name."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(
                attr="name", value=ast.Attribute(attr="dialect") | ast.Name(id="dialect")
            ):
                yield node.lineno
            case ast.Compare(left=left, comparators=right):
                if any(names_a_dialect(operand) for operand in [left, *right]):
                    yield node.lineno
            case ast.MatchValue(value=value):
                if names_a_dialect(value):
                    yield node.lineno


def names_a_dialect(operand: ast.expr) -> bool:
    return any(isinstance(n, ast.Constant) and n.value in DIALECTS for n in ast.walk(operand))


@each_module
def test_nothing_is_printed_or_swallowed(module: str) -> None:
    found = sorted(careless(parse(module)))
    assert not found, f"{module}, lines {found}: print(), or a broad `except` that does nothing"


def careless(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="print")):
                yield node.lineno
            case ast.ExceptHandler(type=None):
                yield node.lineno
            case ast.ExceptHandler(
                type=ast.Name(id="Exception" | "BaseException"),
                body=[ast.Pass() | ast.Continue() | ast.Expr(value=ast.Constant())],
            ):
                yield node.lineno


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_typed(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_importing_the_library_does_not_import_the_agents_sdk() -> None:
    run_python("import eventmeta, sys; assert 'agents' not in sys.modules, 'agents was imported'")


def test_read_models_stand_without_the_library() -> None:
    run_python(
        "import pkgutil, sys; sys.modules['eventmeta'] = None\n"
        "import projections\n"
        "for found in pkgutil.walk_packages(projections.__path__, 'projections.'):\n"
        "    __import__(found.name)"
    )


def test_imports_keep_their_direction() -> None:
    run_python(
        "from importlinter.cli import lint_imports\nraise SystemExit(lint_imports(no_cache=True))"
    )


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_lock_file_works_with_any_index(lock: str) -> None:
    assert "://" not in (ROOT / lock).read_text(encoding="utf-8")
