"""Certificates and keys: an authority of the federation's own, the server's certificate, a key pair for each node."""

from __future__ import annotations

import datetime
import ipaddress
import os
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey
_YEARS = datetime.timedelta(days=3650)  # of the authority


def write_authority(folder: Path, federation: str) -> tuple[Key, x509.Certificate]:
    """``ca.key`` (0600) and ``ca.crt``: signs certificates of servers, not of further authorities. P-256."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = _name(f"{federation} authority")
    builder = _certificate(name, name, key, _YEARS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())
    write_secret(folder / "ca.key", _pem(key, serialization.PrivateFormat.PKCS8))
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key, certificate


def write_server_certificate(
    folder: Path, authority: tuple[Key, x509.Certificate], hosts: tuple[str, ...], days: int
) -> None:
    """``server.key`` (0600) and ``server.pem``, for these host names and addresses. P-256."""
    ca_key, ca = authority
    key = ec.generate_private_key(ec.SECP256R1())
    builder = _certificate(_name(hosts[0]), ca.subject, key, datetime.timedelta(days=days))
    builder = builder.add_extension(x509.SubjectAlternativeName([_general(host) for host in hosts]), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage("digital_signature"), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    certificate = builder.add_extension(identifier, critical=False).sign(ca_key, hashes.SHA256())
    write_secret(folder / "server.key", _pem(key, serialization.PrivateFormat.PKCS8))
    (folder / "server.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def write_node_key(folder: Path) -> bytes:
    """``node.key`` (0600) and ``node.pub`` in OpenSSH's format, as SuperNodes take them. P-384. Returns the latter."""
    key = ec.generate_private_key(ec.SECP384R1())
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_secret(folder / "node.key", _pem(key, serialization.PrivateFormat.OpenSSH))
    (folder / "node.pub").write_bytes(public + b"\n")
    return public + b"\n"


def write_secret(file: Path, data: bytes) -> None:
    """A new file that only its owner may read, from its first byte on. Raises FileExistsError rather than replace."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(data)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: Key, length: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + length)  # clocks differ


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*chosen: str) -> x509.KeyUsage:
    names = ["digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"]
    names += ["key_cert_sign", "crl_sign", "encipher_only", "decipher_only"]
    return x509.KeyUsage(**{name: name in chosen for name in names})


def _pem(key: Key, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
