"""Where a server listens and what protects it: a unix socket of its own user, loopback, or TLS."""

from __future__ import annotations

import fcntl
import ipaddress
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from kvstore.errors import ConfigInvalid, Unavailable
from kvstore.serving import Serve

log = logging.getLogger("kvstore.service")

UNIX_PATH_MAX = 107


def add_unix(server: grpc.Server, path: str) -> int:
    """Listen on a socket that only this user can open: mode 0600, in a folder nobody else may change.

    gRPC shows no peer credentials of a unix socket to Python, so the file system is what keeps others out. The
    descriptor that is returned holds a lock beside the socket, because gRPC would take a socket over from a server that
    lives; close it when the server has ended. Errors: ConfigInvalid for a path or folder that cannot be used,
    Unavailable when another server listens there.
    """
    if len(os.fsencode(path)) > UNIX_PATH_MAX:
        raise ConfigInvalid(f"serve.socket={path!r} is longer than {UNIX_PATH_MAX} bytes, the system's limit")
    folder = Path(path).absolute().parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise ConfigInvalid(f"serve.socket={path!r}: no folder for it: {error}") from None
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigInvalid(f"serve.socket={path!r}: others may write to its folder; use one with mode 0700 or 0755")
    with private_umask():  # the socket never exists with a wider mode, not even for a moment
        lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _bind(server, f"unix:{path}", None)
        except BlockingIOError:
            os.close(lock)
            raise Unavailable(f"serve.socket={path!r}: another daemon listens there") from None
        except BaseException:
            os.close(lock)
            raise
    return lock


def add_tcp(server: grpc.Server, settings: Serve) -> int:
    """Listen on `serve.listen`; the port. Errors: ConfigInvalid beyond loopback without TLS, Unavailable."""
    address = settings.listen or ""
    host = address.rpartition(":")[0].strip("[]")
    credentials = Certificates(settings).credentials() if settings.tls_cert else None
    if credentials is None and not settings.insecure and not is_loopback(host):
        raise ConfigInvalid(
            f"serve.listen={address!r} is not loopback: set serve.tls_cert and serve.tls_key, or "
            "serve.insecure if everyone who can reach it may read and write every block"
        )
    return _bind(server, address, credentials)


def is_loopback(host: str) -> bool:
    """Of an address; a name could be anything, `localhost` apart."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Certificates:
    """The files of TLS; read again for new connections once they have changed, so that they can be renewed."""

    def __init__(self, settings: Serve) -> None:
        self._key, self._cert, self._ca = (
            Path(name) if name else None for name in (settings.tls_key, settings.tls_cert, settings.tls_client_ca)
        )
        self._read_of: tuple[int, ...] = ()
        if self._key is None:
            raise ConfigInvalid("serve.tls_cert without serve.tls_key: give both")

    def credentials(self) -> grpc.ServerCredentials:
        """Errors: ConfigInvalid when a file cannot be read."""
        first = self._configuration()
        self._read_of = self._times()
        return grpc.dynamic_ssl_server_credentials(first, self._renewed, self._ca is not None)  # type: ignore[arg-type]

    def _times(self) -> tuple[int, ...]:
        return tuple(path.stat().st_mtime_ns for path in (self._key, self._cert, self._ca) if path is not None)

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """None: as before. A half-replaced pair must not end what works."""
        try:
            times = self._times()
            if times == self._read_of:
                return None
            fresh = self._configuration()
        except (OSError, ConfigInvalid) as error:
            log.warning("the certificate stays as it was: %s", error)
            return None
        self._read_of = times
        return fresh

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        assert self._key is not None and self._cert is not None
        try:
            pair = (self._key.read_bytes(), self._cert.read_bytes())
            roots = self._ca.read_bytes() if self._ca else None
        except OSError as error:
            raise ConfigInvalid(f"serve: a file of TLS cannot be read: {error}") from None
        return grpc.ssl_server_certificate_configuration([pair], roots)


@contextmanager
def private_umask() -> Iterator[None]:
    """What is made meanwhile is this user's alone."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


def _bind(server: grpc.Server, address: str, credentials: grpc.ServerCredentials | None) -> int:
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise Unavailable(f"cannot listen on {address}: {error}") from None
