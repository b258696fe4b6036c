"""`eventmeta.__all__` is the public interface: nothing missing, nothing unexplained."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import eventmeta
from eventmeta import EventMetaError

STUB = ast.parse(Path(eventmeta.__file__).with_suffix(".pyi").read_text("utf-8"))


def test_all_is_exact() -> None:
    """What the stub imports is what type checkers may import, and what there is."""
    imported = [
        alias.name for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    (listed,) = (
        ast.literal_eval(node.value)
        for node in STUB.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    assert eventmeta.__all__ == dir(eventmeta) == sorted(imported) == listed


def test_a_session_can_be_imported_without_the_projector() -> None:
    code = "import sys; from eventmeta import MetadataSession; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(found.stdout.split())
    assert "eventmeta.session.metadata_session" in modules
    heavy = {"agents", "tenacity", "eventmeta.projector", "sqlalchemy.dialects.mysql"}
    assert not modules & heavy


@pytest.mark.parametrize("name", eventmeta.__all__)
def test_exported_member_explains_itself(name: str) -> None:
    member = getattr(eventmeta, name)
    if inspect.isclass(member) or inspect.isroutine(member):
        doc = member.__doc__ or ""
        assert doc, f"{name} has no docstring"
        assert not doc.startswith(f"{name}("), f"{name} has only the docstring of a dataclass"


def test_errors_show_the_module_that_apps_import_from() -> None:
    errors = [EventMetaError]
    for kind in errors:  # which grows meanwhile
        errors += kind.__subclasses__()
    shown = {kind for kind in errors if kind.__module__ == "eventmeta"}
    public = {getattr(eventmeta, name) for name in eventmeta.__all__}
    assert shown == {each for each in public if inspect.isclass(each) and each in errors}
    assert len(shown) > 30
