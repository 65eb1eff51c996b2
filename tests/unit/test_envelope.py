"""Signed documents, against DSSE's own example, RFC 8032's test vector, and a signature made step by step."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tinymusician.artifacts.envelope import (
    MAX_BYTES,
    canonical,
    payload_sha256,
    pre_auth_encoding,
    seal,
    textual,
    unseal,
)
from tinymusician.artifacts.keys import PrivateKey, is_signature, key_id, public_hex, scheme_of
from tinymusician.errors import UntrustedError

KIND = "application/vnd.example+json"
SEED = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
CONTENT = {"b": [1, "ü"], "a": None}


@pytest.fixture
def key() -> Ed25519PrivateKey:
    """RFC 8032, section 7.1, test 1."""
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SEED))


def trusted(key: PrivateKey) -> dict[str, str]:
    return {key_id(public_hex(key)): public_hex(key)}


def test_example_of_the_specification() -> None:
    """protocol.md of DSSE 1.0."""
    result = pre_auth_encoding("http://example.com/HelloWorld", b"hello world")
    assert result == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_signature_by_hand(key: Ed25519PrivateKey) -> None:
    assert public_hex(key) == PUBLIC
    data = json.loads(seal(KIND, CONTENT, [key]))
    payload = '{"a":null,"b":[1,"ü"]}'.encode()
    assert base64.b64decode(data["payload"]) == payload
    assert data["payloadType"] == KIND
    message = b"DSSEv1 28 application/vnd.example+json 23 " + payload
    (signature,) = data["signatures"]
    key.public_key().verify(base64.b64decode(signature["sig"]), message)
    assert signature["keyid"] == key_id(PUBLIC)
    assert unseal(json.dumps(data).encode(), KIND, trusted(key), "x") == CONTENT


def test_one_of_several_signatures_is_enough(key: Ed25519PrivateKey) -> None:
    other, third = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    data = seal(KIND, CONTENT, [other, key])
    for one in (key, other):
        assert unseal(data, KIND, trusted(one), "x") == CONTENT
    with pytest.raises(UntrustedError, match=r"x: signed by .*, and trusted are"):
        unseal(data, KIND, trusted(third), "x")


def test_a_threshold_counts_different_keys(key: Ed25519PrivateKey) -> None:
    """TUF 1.0.33, 5.3.4: one key that signs twice, or a signature that is invalid, is no second signer."""
    other, third = Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    all_three = trusted(key) | trusted(other) | trusted(third)
    for signing in ([key, other], [other, third], [key, other, third]):
        assert unseal(seal(KIND, CONTENT, signing), KIND, all_three, "x", 2) == CONTENT
    stranger = Ed25519PrivateKey.generate()
    for signing in ([key], [key, key], [key, stranger]):
        with pytest.raises(UntrustedError, match="2 trusted keys must sign it"):
            unseal(seal(KIND, CONTENT, signing), KIND, all_three, "x", 2)
    envelope = json.loads(seal(KIND, CONTENT, [key, other]))
    envelope["signatures"][1]["sig"] = envelope["signatures"][0]["sig"]
    with pytest.raises(UntrustedError, match="2 trusted keys must sign it"):
        unseal(json.dumps(envelope).encode(), KIND, all_three, "x", 2)


def test_ecdsa_on_p256() -> None:
    """RFC 6979, A.2.5: the key, and the signature of "sample" with SHA-256."""
    public = (
        "0460FED4BA255A9D31C961EB74C6356D68C049B8923B61FA6CE669622E60F29FB6"
        "7903FE1008B8BC99A41AE9E95628BC64F2F1B20C2D7E9F5177A3C294D4462299"
    ).lower()
    r = 0xEFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716
    s = 0xF7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8
    signature = encode_dss_signature(r, s)
    assert scheme_of(public) == "ecdsa-p256-sha256"
    assert is_signature(public, signature, b"sample")
    assert not is_signature(public, signature, b"simple")
    assert not is_signature(public, signature[:-1], b"sample")
    assert not is_signature("05" + public[2:], signature, b"sample"), "no point in this form"
    assert not is_signature("04" + "00" * 64, signature, b"sample"), "not on the curve"


def test_the_payload_is_what_identifies_a_document(key: Ed25519PrivateKey) -> None:
    """A mirror without a key can write the envelope in another way, or add signatures; the payload is the same."""
    data = seal(KIND, CONTENT, [key])
    spaced = json.dumps({**json.loads(data), "more": 1}, indent=1).encode()
    more = seal(KIND, CONTENT, [key, Ed25519PrivateKey.generate()])
    expected = hashlib.sha256('{"a":null,"b":[1,"ü"]}'.encode()).hexdigest()
    for one in (data, spaced, more):
        assert unseal(one, KIND, trusted(key), "x") == CONTENT
        assert payload_sha256(one, "x") == expected


def test_invalid_input_is_rejected(key: Ed25519PrivateKey) -> None:
    good = json.loads(seal(KIND, CONTENT, [key]))
    changed = {**good, "payload": base64.b64encode(b'{"a":1}').decode()}
    loose = b'{"a": null}'
    signature = base64.b64encode(key.sign(pre_auth_encoding(KIND, loose))).decode()
    spaced = {
        "payload": base64.b64encode(loose).decode(),
        "payloadType": KIND,
        "signatures": [{"keyid": key_id(PUBLIC), "sig": signature}],
    }
    stranger = {**good, "signatures": [{**good["signatures"][0], "keyid": "0" * 64}]}
    for content, message in (
        (changed, "changed after signing"),
        (spaced, "not canonical JSON"),
        (stranger, "signed by 000000000000"),
        ({**good, "signatures": []}, "not a signed document"),
        ({**good, "payloadType": 1}, "not a signed document"),
        ({**good, "payload": "%%%"}, "not a signed document"),
        ([], "not a signed document"),
    ):
        with pytest.raises(UntrustedError, match=message):
            unseal(json.dumps(content).encode(), KIND, trusted(key), "x")
    with pytest.raises(UntrustedError, match=r"is a application/vnd\.example\+json; a other is needed"):
        unseal(json.dumps(good).encode(), "other", trusted(key), "x")
    with pytest.raises(UntrustedError, match="larger than 1048576 bytes"):
        unseal(b" " * (MAX_BYTES + 1), KIND, trusted(key), "x")
    with pytest.raises(UntrustedError, match="not a signed document"):
        unseal(b"\xff\xfe", KIND, trusted(key), "x")


def test_canonical_json() -> None:
    """RFC 8785 by hand: sorted names, the shortest escapes, everything else as it is."""
    content = {"b": [1, True, None], "a": 'é\u2028\t"\\/\x1f'}
    assert canonical(content) == '{"a":"é\u2028\\t\\"\\\\/\\u001f","b":[1,true,null]}'.encode()
    for value in (1.5, float("nan"), 1 << 53, {"ä": 1}):
        with pytest.raises(ValueError, match=r"is not an integer|is not in ASCII"):
            canonical({"a": [value]})


def test_numbers_become_text_where_languages_differ() -> None:
    assert textual({"kl": 0.1, "steps": 3, "deep": [{"rate": 1e-05}, True, float("inf")]}) == {
        "kl": "0.1",
        "steps": 3,
        "deep": [{"rate": "1e-05"}, True, None],
    }
