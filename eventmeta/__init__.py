"""An event-sourced metadata store for sessions of the OpenAI Agents SDK.

Every change is appended to an immutable log in the transaction that updates the current state, so
that the present is an index lookup and the past is a fold of the same log.
"""

import lazy_loader

import projections

if not hasattr(projections, "EVENT_COLUMNS"):
    raise ImportError(
        "eventmeta needs its own top-level package `projections`, but this app has another package "
        f"or folder of that name, which hides it: {projections.__file__ or projections.__path__}. "
        "Rename that one, or move it into a package of the app."
    )
del projections

__version__ = "0.1.0"

# The names are in `__init__.pyi`. They are imported when first used, so that an app that needs no
# projector, for example, does not wait for its import.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(  # pyright: ignore[reportUnknownVariableType]
    __name__, __file__
)
