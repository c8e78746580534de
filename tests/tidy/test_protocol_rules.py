"""The protocol's file: every call has its promise and its place in docs/protocol.md; no field changes its meaning."""

import re
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto
from tidy_source import ROOT

from kvstore.v1 import kvstore_pb2 as pb

PROTO = ROOT / "protos" / "kvstore" / "v1" / "kvstore.proto"
# What clients out there rely on: one line for each field, "Message.field number type". Lines are added, never changed.
FIELDS = Path(__file__).with_name("protocol_fields.txt")
# Answers that are not called after their call: what they are is said once.
SHARED_REPLIES = {"GetCapabilities": "Capabilities"}

SERVICES = list(pb.DESCRIPTOR.services_by_name.values())
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]


def messages() -> list[Descriptor]:
    """Every message, with those inside others."""
    found = list(pb.DESCRIPTOR.message_types_by_name.values())
    for message in found:
        found += message.nested_types
    return found


def fields() -> dict[str, str]:
    return {
        f"{message.full_name.removeprefix('kvstore.v1.')}.{field.name}": f"{field.number} {_type(field)}"
        for message in messages()
        for field in message.fields
    }


def _type(field: FieldDescriptor) -> str:
    repeated = "repeated " if field.is_repeated else ""
    named = field.message_type or field.enum_type
    plain = FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()
    return repeated + (named.name if named is not None else plain)


def comments() -> dict[str, str]:
    """Call → the comment right above it."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in PROTO.read_text().splitlines():
        if call := re.match(r"  rpc (\w+)\(", line):
            found[call[1]] = " ".join(above)
        above = [*above, line.strip(" /")] if line.strip().startswith("//") else []
    return found


def test_every_call_has_a_promise() -> None:
    found = comments()
    assert found.keys() == {method.name for method in METHODS}
    assert [name for name, text in found.items() if len(text) < 40 or not re.search(r"[.)]$", text)] == []


def test_what_is_said_of_every_call_is_said_once() -> None:
    text = PROTO.read_text()
    assert "What holds for every RPC:" in text and "Errors of every RPC, not listed again:" in text


def test_the_document_has_every_call() -> None:
    text = (ROOT / "docs" / "protocol.md").read_text()
    assert [method.name for method in METHODS if f"`{method.name}`" not in text] == []
    named = set(re.findall(r"`([A-Z][a-zA-Z]+)`", text))
    known = {method.name for method in METHODS} | {message.name for message in messages()}
    assert named <= known, "names that the protocol does not have"


def test_the_document_is_short() -> None:
    assert len((ROOT / "docs" / "protocol.md").read_text().splitlines()) <= 150


def test_names_follow_one_rule() -> None:
    assert pb.DESCRIPTOR.package == "kvstore.v1"
    for method in METHODS:
        assert method.input_type.name == f"{method.name}Request"
        reply = method.output_type.name
        assert reply.endswith("Reply") or SHARED_REPLIES.get(method.name) == reply, method.name
    for message in messages():
        is_map = message.GetOptions().map_entry
        assert is_map or re.fullmatch(r"([A-Z][a-z0-9]+)+", message.name), message.name
        assert [field.name for field in message.fields if not re.fullmatch(r"[a-z]+(_[a-z0-9]+)*", field.name)] == []


def test_enums_begin_with_what_nobody_sends() -> None:
    enums = [*pb.DESCRIPTOR.enum_types_by_name.values(), *(enum for one in messages() for enum in one.enum_types)]
    assert [enum.name for enum in enums if not enum.values_by_number[0].name.endswith("_UNSPECIFIED")] == []


def test_no_field_changes_its_number_or_type() -> None:
    """A field that goes leaves its number reserved."""
    now = fields()
    ranges = {one.full_name.removeprefix("kvstore.v1."): _reserved(one) for one in messages()}
    for line in FIELDS.read_text().splitlines():
        name, _, rest = line.partition(" ")
        message, number = name.rpartition(".")[0], int(rest.split()[0])
        if name in now:
            assert now[name] == rest, f"{line}: it is {now[name]} now"
        else:
            assert any(number in one for one in ranges.get(message, [])), f"{line} has gone and is not reserved"


def _reserved(message: Descriptor) -> list[range]:
    found = DescriptorProto()
    message.CopyToProto(found)
    return [range(one.start, one.end) for one in found.reserved_range]
