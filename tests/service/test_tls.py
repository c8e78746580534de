"""TLS, mutual TLS, and where a server refuses to listen."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest
from service_helpers import config_for, start
from store_helpers import make_spec, put_chain

import kvstore
from kvstore.errors import AccessDenied, ConfigInvalid, InvalidRequest, Unavailable
from kvstore.service.endpoints import is_loopback


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca, server and client: key and certificate each, as openssl makes them."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name, subject in (("server", "localhost"), ("client", "engine-1"), ("stranger", "engine-2")):
        openssl("req", *new_key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={subject}")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signed)
    return folder


def settings(folder: Path, **more: str) -> dict[str, str]:
    pair = {"tls_cert": str(folder / "server.pem"), "tls_key": str(folder / "server.key")}
    return {"listen": "localhost:0", "socket": "", **pair, **more}


def test_tls_with_the_right_authority(certificates: Path, tmp_path: Path):
    with ExitStack() as stack:
        _, server = start(config_for(tmp_path, serve=settings(certificates)), stack)
        target = f"localhost:{server.port}"
        tls = {"ca": str(certificates / "ca.pem")}
        ns = stack.enter_context(kvstore.connect(target, tls=tls)).namespace(make_spec())
        assert ns.match(put_chain(ns, 2)).num_blocks == 2
        for wrong in (True, None):  # the system's authorities do not know ours; without TLS there is no answer
            store = stack.enter_context(kvstore.connect(target, tls=wrong, timeout_ms=3_000))
            with pytest.raises(Unavailable):
                store.stats()


def test_mutual_tls_says_who_is_calling(certificates: Path, tmp_path: Path):
    (tmp_path / "access.toml").write_text('[[tenant]]\nname = "one"\ncertificates = ["engine-1"]\n')
    serve = settings(certificates, tls_client_ca=str(certificates / "ca.pem"), access=str(tmp_path / "access.toml"))
    with ExitStack() as stack:
        inner, server = start(config_for(tmp_path, serve=serve), stack)
        target, ca = f"localhost:{server.port}", str(certificates / "ca.pem")

        def connect(name: str):
            tls = {"ca": ca, "cert": str(certificates / f"{name}.pem"), "key": str(certificates / f"{name}.key")}
            return stack.enter_context(kvstore.connect(target, tls=tls, timeout_ms=3_000))

        put_chain(connect("client").namespace(make_spec()), 1)
        assert "tiny tenant=one" in inner.stats()["namespaces"]
        with pytest.raises(AccessDenied, match="engine-2"):
            connect("stranger").namespace(make_spec())
        with pytest.raises(Unavailable):
            stack.enter_context(kvstore.connect(target, tls={"ca": ca}, timeout_ms=3_000)).stats()


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.org:0"])
def test_no_other_address_without_tls(tmp_path: Path, listen: str):
    with ExitStack() as stack, pytest.raises(ConfigInvalid, match=r"serve\.tls_cert"):
        start(config_for(tmp_path, serve={"listen": listen, "socket": ""}), stack)


def test_unless_told_so(tmp_path: Path):
    with ExitStack() as stack:
        _, server = start(config_for(tmp_path, serve={"listen": "0.0.0.0:0", "insecure": True}), stack)
        assert server.port > 0


def test_loopback_is_what_it_is():
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "localhost.example.org", "10.0.0.1", ""))


def test_files_that_are_not_there_are_named(tmp_path: Path):
    absent = str(tmp_path / "absent")
    with ExitStack() as stack, pytest.raises(ConfigInvalid, match="absent"):
        start(config_for(tmp_path, serve={"listen": "127.0.0.1:0", "tls_cert": absent, "tls_key": absent}), stack)
    with ExitStack() as stack, pytest.raises(ConfigInvalid, match="tls_key"):
        start(config_for(tmp_path, serve={"listen": "127.0.0.1:0", "tls_cert": absent}), stack)
    for tls in ({"ca": absent}, {"cert": absent}, {"colour": absent}):
        with pytest.raises(InvalidRequest, match="tls"):
            kvstore.connect("localhost:1", tls=tls)


def test_the_socket_is_for_its_owner_and_for_one_server(tmp_path: Path):
    with ExitStack() as stack:
        start(config_for(tmp_path / "new"), stack)
        socket = tmp_path / "new" / "s"
        assert socket.stat().st_mode & 0o777 == 0o600 and socket.parent.stat().st_mode & 0o777 == 0o700
        with pytest.raises(Unavailable, match="another daemon"):
            start(config_for(tmp_path / "new"), stack)
    with ExitStack() as stack:
        start(config_for(tmp_path / "new"), stack)  # the first has ended
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with ExitStack() as stack, pytest.raises(ConfigInvalid, match="others may write"):
        start(config_for(tmp_path / "open"), stack)
    with ExitStack() as stack, pytest.raises(ConfigInvalid, match="107 bytes"):
        start(config_for(tmp_path / ("x" * 108)), stack)


@pytest.mark.parametrize("target", ["", "unix:", "localhost", "http://x:1", "a:b:1", 5, None, "host:123456"])
def test_targets_are_checked(target):
    with pytest.raises(InvalidRequest, match="target"):
        kvstore.connect(target)


@pytest.mark.parametrize("token", ["", "with space", "line\n", "é", "x" * 4001, 5])
def test_tokens_are_checked(token):
    with pytest.raises(InvalidRequest, match="token"):
        kvstore.connect("unix:x", token=token)
