"""The command line: ``python -m tests.torture``."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import tempfile
from pathlib import Path

from tests.support.backends import Backends
from tests.torture.campaign import run
from tests.torture.faults import ALL, FAULTS


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        prog="python -m tests.torture", description=sys.modules["tests.torture"].__doc__
    )
    made.add_argument("--seconds", type=float, default=20.0, help="of each fault (default: 20)")
    made.add_argument("--seed", default=secrets.token_hex(4), help="repeats the choices of a run")
    made.add_argument("--backend", action="append", choices=ALL, help="default: all")
    made.add_argument("--fault", action="append", choices=sorted(FAULTS), help="default: all")
    return made


def main() -> int:
    """Run the campaigns that are asked for; 1 if a promise was broken."""
    options = parser().parse_args()
    print(f"seed {options.seed}", flush=True)
    failed = 0
    with Backends() as backends:
        for backend in options.backend or ALL:
            for name in options.fault or FAULTS:
                if backend not in FAULTS[name].backends:
                    continue
                with tempfile.TemporaryDirectory(prefix="eventmeta-") as folder:
                    seed = f"{options.seed}/{backend}/{name}"
                    campaign = run(backends[backend], name, seed, options.seconds, Path(folder))
                    result = asyncio.run(campaign)
                print(f"{backend:12} {name:14} {result.summary}", flush=True)
                for violation in result.violations[:20]:
                    print(f"    {violation}", flush=True)
                failed += bool(result.violations)
    print(f"{failed} campaigns failed (--seed {options.seed})" if failed else "All promises held.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
