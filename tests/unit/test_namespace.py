"""NamespaceSpec: what it accepts, what it is called, and the digest that seeds every key."""

import json
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from kvstore import NamespaceSpec
from kvstore.errors import InvalidRequest, NamespaceMismatch

SPEC = NamespaceSpec(model="m", block_nbytes=4096)
OTHER = {
    "model": "n", "block_nbytes": 8192, "revision": "v2", "dtype": "float16", "layout": "layers", "block_tokens": 32,
    "shards": 2, "lora": "l", "group": 1, "hash": "xxh3_128", "salt": "s", "name": "x", "tenant": "t",
}  # fmt: skip


def test_every_field_has_another_value_to_test_with():
    assert set(OTHER) == {item.name for item in fields(NamespaceSpec)}


@pytest.mark.parametrize("field", OTHER)
def test_every_field_keeps_the_keys_apart(field):
    assert replace(SPEC, **{field: OTHER[field]}).digest() != SPEC.digest()


def test_digests_are_what_they_were_on_the_first_day():
    assert SPEC.digest().hex() == "9c263e5b2170d5e67c7ec2fb5aca3850cd13bbca3330877ffbb48e4877ed1f96"
    assert (
        replace(SPEC, tenant="acme").digest().hex()
        == "4bfcd31047efdf82145baf13bc2407df1b652267c2949784e051789d27fa7c07"
    )


@pytest.mark.parametrize("field", OTHER)
def test_a_mismatch_names_the_field(field):
    wanted = replace(SPEC, **{field: OTHER[field]})
    with pytest.raises(NamespaceMismatch) as caught:
        SPEC.require_equal(wanted)
    error = caught.value
    assert (error.field, error.stored, error.wanted) == (field, getattr(SPEC, field), OTHER[field])
    assert f"{field}={getattr(SPEC, field)!r}" in str(error)
    SPEC.require_equal(replace(SPEC))


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, **OTHER), replace(SPEC, model="模型 ✓", salt='"\\\n')])
def test_the_text_brings_the_spec_back(spec):
    assert NamespaceSpec.from_text(spec.text()) == spec
    assert spec.text() == json.dumps(json.loads(spec.text()), sort_keys=True, separators=(",", ":"))


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"model":"m"}', SPEC.text()[:-1] + ',"colour":1}'])
def test_a_text_that_is_no_namespace_is_refused(text):
    with pytest.raises(InvalidRequest, match="not a namespace"):
        NamespaceSpec.from_text(text)


@pytest.mark.parametrize("field", ["model", "revision", "dtype", "layout", "lora", "hash", "salt", "name"])
@pytest.mark.parametrize("value", [None, 5, b"bytes", "x" * 513])
def test_texts_are_checked(field, value):
    with pytest.raises(InvalidRequest, match=f"{field}="):
        replace(SPEC, **{field: value})


@pytest.mark.parametrize(
    ("field", "low", "high"),
    [("block_tokens", 1, 4096), ("block_nbytes", 1, 1 << 30), ("shards", 1, 32), ("group", 0, 2**31 - 1)],
)
def test_numbers_are_checked(field, low, high):
    for value in (low - 1, high + 1, -(2**70), 2**70, True, False, 1.0, float("nan"), "1", None):
        with pytest.raises(InvalidRequest, match=rf"{field}=.* between {low} and {high}"):
            replace(SPEC, **{field: value})
    for value in (low, high):
        assert getattr(replace(SPEC, **{field: value}), field) == value


def test_parts_divide_the_block():
    assert replace(SPEC, shards=32).part_nbytes == 128
    with pytest.raises(InvalidRequest, match=r"block_nbytes=4096 .* shards=3"):
        replace(SPEC, shards=3)


def test_a_model_is_needed_and_unknown_fields_are_refused():
    with pytest.raises(InvalidRequest, match="model='' is empty"):
        replace(SPEC, model="")
    with pytest.raises(InvalidRequest, match="hash='md5'"):
        replace(SPEC, hash="md5")
    with pytest.raises(TypeError, match="colour"):
        NamespaceSpec(model="m", block_nbytes=1, colour="red")
    with pytest.raises(FrozenInstanceError):
        SPEC.model = "n"


def test_titles_tell_apart_what_may_lie_side_by_side():
    assert SPEC.title == "m"
    assert replace(SPEC, lora="l", group=2, salt="s").title == "m lora=l group=2 salt=s"
    assert replace(SPEC, name="given", lora="l").title == "given"
    assert replace(SPEC, dtype="float16", block_nbytes=8192, shards=4).title == "m"
