"""Tenants: who a caller is, what it may do, and that nobody sees another one's blocks."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from service_helpers import MIB, config_for, start
from store_helpers import BLOCK, all_right, chain, make_spec, payload, put_chain

import kvstore
from kvstore import Hint
from kvstore.access import Access, Rule
from kvstore.errors import AccessDenied, ConfigInvalid, InvalidRequest, LimitExceeded
from kvstore.v1 import kvstore_pb2 as pb

SAMPLE = Path(__file__).parents[2] / "deploy" / "access.toml"


def digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def table(*tenants: dict[str, Any]) -> str:
    lines = []
    for tenant in tenants:
        lines.append("[[tenant]]")
        lines += [f"{key} = {value!r}" for key, value in tenant.items()]
    return "\n".join(lines)


ACME = {"name": "acme", "token_sha256": [digest("a")], "verbs": ["read", "write", "remove"], "namespaces": ["tiny*"]}
BETA = {"name": "beta", "token_sha256": [digest("b")], "quota_nbytes": 4 * BLOCK, "namespaces_max": 1}


@pytest.fixture
def served(tmp_path: Path):
    """A server with a table, and a function that connects to it with a token."""
    (tmp_path / "access.toml").write_text(table(ACME, BETA))
    with ExitStack() as stack:
        inner, server = start(config_for(tmp_path, serve={"access": str(tmp_path / "access.toml")}), stack)

        def connect(token: str | None = None) -> Any:
            target = f"unix:{tmp_path / 's'}"
            return stack.enter_context(kvstore.connect(target, token=token, timeout_ms=10_000))

        yield inner, server, connect


def test_tenants_do_not_see_each_other(served):
    inner, _, connect = served
    a, b, operator = (connect(token).namespace(make_spec()) for token in ("a", "b", None))
    keys = put_chain(a, 3)
    assert [ns.match(keys).num_blocks for ns in (a, b, operator)] == [3, 0, 0]
    assert b.explain(keys) == ["never stored, or gone too long ago to be remembered"] * 3
    assert operator.put(keys, payload(keys)).stored == 3 and b.put(keys, payload(keys)).stored == 3
    assert a.remove(keys) == 3
    assert [ns.match(keys).num_blocks for ns in (a, b, operator)] == [0, 3, 3]
    assert all_right(keys, b.get(keys)[1])
    assert {"tiny", "tiny tenant=acme", "tiny tenant=beta"} == inner.stats()["namespaces"].keys()


def test_the_handle_of_another_tenant_is_none(served):
    _, _, connect = served
    mine, theirs = connect("a"), connect("b")
    handle = mine.namespace(make_spec())._handle
    keys = put_chain(mine.namespace(make_spec()), 1)
    with pytest.raises(kvstore.KVStoreError, match="not open here"):
        request = pb.MatchRequest(namespace=handle, keys=keys.tobytes())
        theirs.link.ask("Match", request, pb.MatchReply, repeat=False)


def test_verbs_and_names_are_checked(served):
    _, _, connect = served
    a, b = connect("a"), connect("b")
    ns = b.namespace(make_spec())
    with pytest.raises(AccessDenied, match="may not remove"):
        ns.remove(chain(ns, 1))
    with pytest.raises(AccessDenied, match="may not stats"):
        b.stats()
    with pytest.raises(AccessDenied, match="may not admin"):
        b.namespace(make_spec(), quota_nbytes=1 << 30)
    with pytest.raises(AccessDenied, match="may not use namespace 'other'"):
        a.namespace(make_spec(model="other"))


def test_who_may_only_read_says_nothing_of_what_stays(served):
    inner, server, connect = served
    ns = connect("b").namespace(make_spec())
    keys = put_chain(ns, 2)
    server.gatekeeper.replace(Access([Rule(name="beta", token_sha256=(digest("b"),), verbs=("read",))]))
    hint = Hint(ttl_s=0)
    for call in (
        lambda: ns.hint(keys, hint),
        lambda: ns.lease(keys, hint=hint),
        lambda: ns.get(keys, hint=hint),
        lambda: ns.pin(keys, 60),
        lambda: ns.unpin(keys),
    ):
        with pytest.raises(AccessDenied, match="may not write"):
            call()
    assert ns.get(keys)[0] == 2
    assert inner.stats()["index"]["hints"] == inner.stats()["policy"]["ttl_chains"] == 0


def test_a_tenant_hints_at_and_pins_its_own_blocks(served):
    inner, _, connect = served
    a, b = (connect(token).namespace(make_spec()) for token in ("a", "b"))
    keys = put_chain(a, 3)
    assert a.pin(keys, 60) == a.hint(keys, Hint()) == 3
    assert b.pin(keys, 60) == b.hint(keys, Hint()) == b.unpin(keys) == 0
    assert inner.stats()["policy"]["pinned_blocks"] == 3 and a.unpin(keys) == 3


def test_quota_and_number_of_namespaces_are_limits(served):
    _, _, connect = served
    ns = connect("b").namespace(make_spec())
    keys = chain(ns, 6)
    result = ns.put(keys, payload(keys))
    assert result.stored == 4 and "quota" in result.rejected[4]
    with pytest.raises(LimitExceeded, match="namespaces_max=1"):
        connect("b").namespace(make_spec(salt="x"))
    assert connect("b").namespace(make_spec()).match(keys).num_blocks == 4


def test_a_quota_is_for_all_namespaces_of_a_tenant_and_can_change(served):
    inner, server, connect = served
    row = {"name": "acme", "token_sha256": (digest("a"),)}
    server.gatekeeper.replace(Access([Rule(**row, quota_nbytes=6 * BLOCK)]))
    first, second = (connect("a").namespace(make_spec(salt=salt)) for salt in ("x", "y"))
    put_chain(first, 4)
    put_chain(second, 4)
    assert inner.stats()["index"]["entries"] == 6
    server.gatekeeper.replace(Access([Rule(**row, quota_nbytes=9 * BLOCK)]))
    put_chain(first, 4, prompt=2)
    assert inner.stats()["index"]["entries"] == 9


def test_numbers_name_other_tenants_only_to_an_administrator(served):
    _, server, connect = served
    rows = [
        Rule(name=name, token_sha256=(digest(name[0]),), verbs=("read", "write", "stats")) for name in ("acme", "beta")
    ]
    server.gatekeeper.replace(Access(rows))
    a, b, operator = (connect(token) for token in ("a", "b", None))
    for store in (a, b, operator):
        put_chain(store.namespace(make_spec()), 2)
    assert a.stats()["namespaces"].keys() == {"tiny tenant=acme"}
    assert {row["tenant"] for row in a.stats()["service"]["clients"].values()} == {"acme"}
    assert "beta" not in str(a.stats()) and "acme" not in str(b.stats())
    assert a.stats()["index"]["entries"] == 6, "sums are of the whole store"
    every = operator.stats()
    assert every["namespaces"].keys() == {"tiny", "tiny tenant=acme", "tiny tenant=beta"}
    assert {row["tenant"] for row in every["service"]["clients"].values()} == {"", "acme", "beta"}
    server.gatekeeper.replace(Access([rows[0].model_copy(update={"verbs": ("stats", "admin")}), rows[1]]))
    assert "tiny tenant=beta" in a.stats()["namespaces"]


def test_a_wrong_token_opens_nothing(served):
    _, _, connect = served
    for call in (lambda s: s.namespace(make_spec()), lambda s: s.stats(), lambda s: s.link.capabilities):
        with pytest.raises(AccessDenied, match="not known"):
            call(connect("nobody's"))


def test_the_tenant_is_never_said_by_the_caller(served):
    _, _, connect = served
    with pytest.raises(InvalidRequest, match="tenant"):
        connect("a").namespace(make_spec(tenant="beta"))


def test_rows_can_change_while_it_runs(served):
    _, server, connect = served
    ns = connect("a").namespace(make_spec())
    keys = put_chain(ns, 1)
    server.gatekeeper.replace(Access([Rule(name="acme", token_sha256=(digest("a"),), verbs=("write",))]))
    with pytest.raises(AccessDenied, match="may not read"):
        ns.match(keys)
    server.gatekeeper.replace(Access())
    with pytest.raises(AccessDenied, match="not known"):
        ns.match(keys)


def test_tcp_callers_need_a_token_when_there_is_a_table(tmp_path: Path):
    (tmp_path / "access.toml").write_text(table(ACME))
    serve = {"access": str(tmp_path / "access.toml"), "listen": "127.0.0.1:0", "socket": ""}
    with ExitStack() as stack:
        _, server = start(config_for(tmp_path, serve=serve), stack)
        target = f"127.0.0.1:{server.port}"
        with pytest.raises(AccessDenied, match="no bearer token"):
            stack.enter_context(kvstore.connect(target)).namespace(make_spec())
        ns = stack.enter_context(kvstore.connect(target, token="a")).namespace(make_spec())
        assert len(put_chain(ns, 2)) == 2
        channel = stack.enter_context(grpc.insecure_channel(target))
        method = channel.unary_unary("/kvstore.v1.KVStore/Stats")
        for value in ("a", "Basic a", "bearer a", "Bearer ", "Bearer " + "x" * 5000):
            with pytest.raises(grpc.RpcError) as caught:
                method(b"", metadata=(("authorization", value),), timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_the_sample_is_a_table():
    Access.load(SAMPLE)
    assert "example" in SAMPLE.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "x"),
        ("[[tenant]]", "name"),
        (table({"name": "a b"}), "name"),
        (table({"name": "a", "token_sha256": ["plain"]}), "token_sha256"),
        (table({"name": "a", "verbs": ["fly"]}), "verbs"),
        (table({"name": "a", "namespaces_max": 0}), "namespaces_max"),
        (table(ACME, {**ACME, "name": "other"}), "acme"),
        ("[[tenant", "cannot be read"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, said: str):
    path = tmp_path / "access.toml"
    path.write_text(text)
    with pytest.raises(ConfigInvalid, match=said):
        Access.load(path)
    with pytest.raises(ConfigInvalid, match="cannot be read"):
        Access.load(tmp_path / "absent")


def test_quotas_are_bytes(served):
    inner, _, connect = served
    operator = connect()
    ns = operator.namespace(make_spec(), quota_nbytes=MIB)
    assert ns is not None and inner.stats()["namespaces"]["tiny"]["quota_nbytes"] == MIB
