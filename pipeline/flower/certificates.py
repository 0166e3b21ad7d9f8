"""Certificates of a federation for a first try: an authority, its server, keys of sites."""

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipeline.errors import ConfigError

DAYS = 365
LOOPBACK = ("127.0.0.1", "localhost")  # where the SuperLink's own workers reach it


def make(folder: Path, hosts: Sequence[str], sites: int) -> Path:
    """A folder with ca.crt, server.pem and server.key, and site-<n>, site-<n>.pub for each site.

    hosts  names and addresses by which sites reach the server
    The authority's own key is kept nowhere: nobody can sign another server with it. Raises
    ConfigError for a folder that is there.
    """
    if folder.exists():
        raise ConfigError(f"{folder} exists; name a new folder, so that no key is replaced")
    folder.mkdir(parents=True, mode=0o700)
    authority, server = (ec.generate_private_key(ec.SECP384R1()) for _ in range(2))
    ca = _sign("fedclip authority", authority, authority, None, ())
    own = _sign("fedclip server", server, authority, ca, (*hosts, *LOOPBACK))
    pem, openssh = serialization.Encoding.PEM, serialization.Encoding.OpenSSH
    (folder / "ca.crt").write_bytes(ca.public_bytes(pem))
    (folder / "server.pem").write_bytes(own.public_bytes(pem))
    formats = serialization.PrivateFormat
    _write_key(folder / "server.key", server, formats.TraditionalOpenSSL)
    for n in range(1, sites + 1):
        key = ec.generate_private_key(ec.SECP384R1())
        _write_key(folder / f"site-{n}", key, formats.OpenSSH)
        public = key.public_key().public_bytes(openssh, serialization.PublicFormat.OpenSSH)
        (folder / f"site-{n}.pub").write_bytes(public + b"\n")
    return folder


def _write_key(
    file: Path, key: ec.EllipticCurvePrivateKey, kind: serialization.PrivateFormat
) -> None:
    file.touch(mode=0o600)
    none = serialization.NoEncryption()
    file.write_bytes(key.private_bytes(serialization.Encoding.PEM, kind, none))


def _sign(
    name: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate | None, hosts: Sequence[str],
) -> x509.Certificate:  # fmt: skip
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    signs = [ca is not None, False, False, False, False, ca is None, False, False, False]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if ca is None else ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + DAYS * day)
        .add_extension(x509.BasicConstraints(ca=ca is None, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(*signs), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False
        )
    )
    if hosts:
        names = [_general(host) for host in dict.fromkeys(hosts)]
        made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return made.sign(by, hashes.SHA256())


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
