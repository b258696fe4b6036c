"""House rules that no linter knows, checked like any other behaviour."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT, run_python

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


def succeeds(code: str) -> None:
    done = run_python("-c", code)
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


TESTS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "tests").rglob("test_*.py"))]


@pytest.mark.parametrize("module", TESTS)
def test_no_test_picks_its_server_itself(module: str) -> None:
    """The fixtures of conftest.py skip it where there is none, and heed ``--backend``."""
    found = sorted(set(picked_backends(parse(module))))
    assert not found, f"{module}, lines {found}: use a fixture that NARROWING names"


def picked_backends(tree: ast.Module) -> Iterator[int]:
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg="backends") | ast.Name(id="Backends"):
                yield node.lineno
            case ast.Subscript(value=ast.Name(id="backends"), slice=ast.Constant()):
                yield node.lineno


def test_a_test_that_picks_its_server_itself_is_noticed() -> None:
    bad = ["def t(backends): pass", "backends['mariadb'].database()", "with Backends() as b: pass"]
    assert [list(picked_backends(ast.parse(code))) for code in bad] == [[1], [1], [1]]


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


def test_read_models_stand_without_the_library() -> None:
    succeeds(
        "import pkgutil, sys; sys.modules['eventmeta'] = None\n"
        "import projections\n"
        "for found in pkgutil.walk_packages(projections.__path__, 'projections.'):\n"
        "    __import__(found.name)"
    )


@each_module
def test_nothing_of_ours_is_imported_for_types_only(module: str) -> None:
    """A circle would hide there."""
    hidden = [
        node.module
        for block in ast.walk(parse(module))
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom) and node.module
        if node.module.partition(".")[0] in PACKAGES
    ]
    assert not hidden


def test_imports_keep_their_direction() -> None:
    succeeds(
        "from importlinter.cli import lint_imports\nraise SystemExit(lint_imports(no_cache=True))"
    )


@pytest.mark.parametrize(
    "lock", ["requirements.lock", "requirements-dev.lock", "requirements-docs.lock"]
)
def test_lock_file_works_with_any_index(lock: str) -> None:
    assert "://" not in (ROOT / lock).read_text(encoding="utf-8")
