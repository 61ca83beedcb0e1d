"""An OAuth server's keys and tokens, and those that somebody forges."""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import get_default_algorithms

AUDIENCE = "https://mcp.example.com/mcp"
ISSUER = "https://login.example.com"


@functools.cache
def private_key(algorithm: str = "RS256", number: int = 0, bits: int = 2048) -> Any:
    """Return a key for the algorithm, always the same one for the same number."""
    if algorithm[:2] in ("RS", "PS"):
        return rsa.generate_private_key(65537, bits)
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    curves: dict[str, ec.EllipticCurve] = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    return ec.generate_private_key(curves[algorithm])


def public_key(
    kid: str | None = "k0", algorithm: str = "RS256", number: int = 0, *, bits: int = 2048, **more: Any
) -> dict[str, Any]:
    """Return a JSON web key; `more` replaces members of it, and None takes one away."""
    public = private_key(algorithm, number, bits).public_key()
    data = get_default_algorithms()[algorithm].to_jwk(public, as_dict=True)
    found = {**data, "kid": kid, "alg": algorithm, "use": "sig", **more}
    return {name: value for name, value in found.items() if value is not None}


def claims(**more: Any) -> dict[str, Any]:
    """Return what a good token says; `more` replaces it, and None takes a claim away."""
    now = int(time.time())
    good = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "user-1",
        "client_id": "client-1",
        "iat": now,
        "exp": now + 600,
        "scope": "read write",
    }
    return {name: value for name, value in {**good, **more}.items() if value is not None}


def token(
    kid: str | None = "k0",
    algorithm: str = "RS256",
    number: int = 0,
    *,
    bits: int = 2048,
    header: dict[str, Any] | None = None,
    **more: Any,
) -> str:
    """Return a signed token; `more` are claims."""
    headers = {**({"kid": kid} if kid is not None else {}), **(header or {})}
    return jwt.encode(claims(**more), private_key(algorithm, number, bits), algorithm, headers)


def encoded(data: bytes | dict[str, Any]) -> str:
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def unsigned(algorithm: str = "none", **header: Any) -> str:
    return f"{encoded({'alg': algorithm, 'typ': 'JWT', 'kid': 'k0', **header})}.{encoded(claims())}."


def signed_with_the_public_key(algorithm: str = "HS256", **header: Any) -> str:
    """Forge a token whose secret is what everybody can read: the classic mistake of a verifier."""
    pem = (
        private_key()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    begun = f"{encoded({'alg': algorithm, 'typ': 'JWT', 'kid': 'k0', **header})}.{encoded(claims())}"
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}.get(algorithm, hashlib.sha256)
    return f"{begun}.{encoded(hmac.new(pem, begun.encode(), digest).digest())}"


def forgeries() -> dict[str, str]:
    """Return tokens that nobody may be let in with, by what is wrong with them."""
    good = token()
    head, body, signature = good.split(".")
    now = int(time.time())
    return {
        "not signed": f"{head}.{body}.",
        "alg none": unsigned(),
        "alg None": unsigned("None"),
        "alg empty": unsigned(""),
        "alg none, with a signature": unsigned() + signature,
        "HS256 with the public key": signed_with_the_public_key(),
        "HS512 with the public key": signed_with_the_public_key("HS512"),
        "RS256 that is a hash": signed_with_the_public_key("RS256"),
        "another key": token(number=1),
        "another key of its own": token(number=1, header={"jwk": public_key(number=1)}),
        "a key elsewhere": token(number=1, header={"jku": "https://evil.example/keys"}),
        "an unknown key": token(kid="k9"),
        "a path as key": token(kid="../../dev/null", number=1),
        "another algorithm than the key's": token(algorithm="RS512"),
        "expired": token(exp=now - 31),
        "never expires": token(exp=None),
        "expires at infinity": token(exp=float("inf")),
        "expires at a word": token(exp="soon"),
        "not yet": token(nbf=now + 60),
        "for somebody else": token(aud="https://other.example.com/mcp"),
        "for a part of us": token(aud="https://mcp.example.com"),
        "for more than us": token(aud=f"{AUDIENCE}.evil.example"),
        "for nobody": token(aud=None),
        "for an empty list": token(aud=[]),
        "for a list of nothing": token(aud=[None]),
        "of somebody else": token(iss="https://evil.example"),
        "of one who looks alike": token(iss=f"{ISSUER}/"),
        "of nobody": token(iss=None),
        "of nobody in particular": token(sub=None, client_id=None),
        "an identity, no access": token(header={"typ": "logout+jwt"}),
        "another form of the body": token(header={"crit": ["b64"], "b64": True}),
        "what must be understood": token(header={"crit": ["exp"], "exp": 1}),
        "changed": f"{head}.{encoded(claims(sub='root'))}.{signature}",
        "cut": good[:-4],
        "two parts": f"{head}.{body}",
        "four parts": f"{good}.{signature}",
        "five parts": f"{head}..{body}.{signature}.x",
        "no token": "x",
        "dots": "..",
        "no JSON": f"{encoded(b'nonsense')}.{body}.{signature}",
        "a list": f"{encoded(b'[]')}.{body}.{signature}",
        "deep": f"{encoded(b'[' * 3000)}.{body}.{signature}",
        "a number as key": f"{encoded({'alg': 'RS256', 'kid': 5})}.{body}.{signature}",
        "a list as algorithm": f"{encoded({'alg': ['RS256'], 'kid': 'k0'})}.{body}.{signature}",
        "not a token's characters": "~~~.~~~.~~~",
    }
