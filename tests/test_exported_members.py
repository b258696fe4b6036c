"""`eventmeta.__all__` is the public interface: nothing missing, nothing unexplained."""

import inspect

import pytest

import eventmeta


def test_all_is_exact() -> None:
    public = {
        name
        for name, member in vars(eventmeta).items()
        if not name.startswith("_") and not inspect.ismodule(member)
    }
    listed = [name for name in eventmeta.__all__ if not name.startswith("_")]
    assert listed == sorted(public)


@pytest.mark.parametrize("name", eventmeta.__all__)
def test_exported_member_explains_itself(name: str) -> None:
    member = getattr(eventmeta, name)
    if inspect.isclass(member) or inspect.isroutine(member):
        doc = member.__doc__ or ""
        assert doc, f"{name} has no docstring"
        assert not doc.startswith(f"{name}("), f"{name} has only the docstring of a dataclass"
