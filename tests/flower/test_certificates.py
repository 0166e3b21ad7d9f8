"""What the commands of docs/flower.md make: who is trusted, under which names, and who is not."""

import subprocess

import pytest

from tests.flower.certificates import make, openssl


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make(tmp_path_factory.mktemp("keys") / "certificates")


def trusted(ca, certificate, *words) -> bool:
    words = ("-x509_strict", "-purpose", "sslserver", "-CAfile", ca, *words)
    return openssl("verify", *words, certificate).returncode == 0


def test_the_files_are_those_that_the_page_names_and_keys_are_for_their_owner(made):
    sites = {f"site-{n}" for n in (1, 2, 3)}
    keys = {"server.key", *sites}
    assert {file.name for file in made.iterdir()} == {
        *("ca.crt", "server.pem"), *keys, *(f"{site}.pub" for site in sites),
    }  # fmt: skip
    assert made.stat().st_mode & 0o777 == 0o700
    assert all((made / name).stat().st_mode & 0o777 == 0o600 for name in keys)
    for site in sites:
        command = ["ssh-keygen", "-y", "-f", str(made / site)]
        public = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert public.split() == (made / f"{site}.pub").read_text().split()


def test_the_server_is_trusted_under_its_own_names_alone(made):
    ca, server = made / "ca.crt", made / "server.pem"
    for name in ("fl.example.org", "localhost"):
        assert trusted(ca, server, "-verify_hostname", name)
    assert trusted(ca, server, "-verify_ip", "127.0.0.1")
    assert not trusted(ca, server, "-verify_hostname", "other.example.org")


def test_nobody_else_is_trusted_and_the_server_signs_nobody(made, tmp_path):
    other = make(tmp_path / "other", sites=1)
    assert not trusted(made / "ca.crt", other / "server.pem")
    forged = openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-384", "-noenc",
        "-subj", "/CN=forged", "-addext", "basicConstraints=critical,CA:FALSE",
        "-CA", made / "server.pem", "-CAkey", made / "server.key",
        "-keyout", tmp_path / "forged.key", "-out", tmp_path / "forged.pem",
    )  # fmt: skip
    assert forged.returncode == 0, forged.stderr
    chain = ("-untrusted", made / "server.pem")
    assert not trusted(made / "ca.crt", tmp_path / "forged.pem", *chain)


def test_no_key_is_replaced(made):
    before = (made / "server.key").read_bytes()
    with pytest.raises(subprocess.CalledProcessError):
        make(made)
    assert (made / "server.key").read_bytes() == before
