"""A Dask cluster that talks by TLS alone: Dask's own settings are followed."""

import datetime

import pytest
from clusters import Cluster
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed import Security

BUILT = "linear-t4-fp32"


def write_certificate(folder):
    """Write a certificate that vouches for itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a cluster of a test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tuple(map(str, paths))


@pytest.mark.slow
def test_a_plan_over_tls_and_none_without_the_certificate(again, ending, tmp_path):
    certificate, key = write_certificate(tmp_path)
    names = {"CA_FILE": certificate}
    for role in ("SCHEDULER", "WORKER", "CLIENT"):
        names |= {f"{role}__CERT": certificate, f"{role}__KEY": key}
    environment = {f"DASK_DISTRIBUTED__COMM__TLS__{name}": value for name, value in names.items()}
    environment["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] = "true"
    security = Security(
        tls_ca_file=certificate, tls_client_cert=certificate, tls_client_key=key, require_encryption=True
    )
    folder = tmp_path / "cluster"
    folder.mkdir()
    cluster = Cluster(folder, environment=environment, security=security)
    try:
        cluster.start_scheduler("tls")
        assert cluster.address.startswith("tls://")
        cluster.start_worker("builder")
        again.write('[[builds]]\nmodel = "linear"\ntarget = "t4-fp32"\nseed = 1\n')
        options = ("--executor", "dask", "--scheduler", cluster.address, "--json")
        refused = again.run(*options)
        assert refused.code == 2
        assert refused.stderr.startswith(
            f"error: the Dask scheduler at {cluster.address} is reached by TLS, and Dask's settings name "
            "no certificate\nset distributed.comm.tls in Dask's configuration, or "
        )
        ran = again.run(*options, **environment)
        assert ran.code == 0, ran.stderr
        assert ran.statuses == {BUILT: "built"}
    finally:
        cluster.stop()
