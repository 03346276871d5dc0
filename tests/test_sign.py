"""Signatures: what fits, what does not, and that OpenSSL says the same."""

import shutil
import subprocess
from dataclasses import replace

import pytest

from segmenter.errors import EngineError
from segmenter_engines import open_session
from segmenter_engines import sign as sign_command
from segmenter_engines.folder import FP32
from segmenter_engines.manifest import manifest_path, read_manifest
from segmenter_engines.signature import require_signature, sign, signature_path
from tests.labelling import label, photos_fixture  # noqa: F401 - the last is a fixture

pytest.importorskip("cryptography", reason="the extra `signing` is not installed")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two pairs of Ed25519 keys, one RSA key, and one with a password."""
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    folder = tmp_path_factory.mktemp("keys")
    private = {name: ed25519.Ed25519PrivateKey.generate() for name in ("ours", "theirs")}
    private["rsa"] = rsa.generate_private_key(65537, 2048)
    for name, key in private.items():
        plain = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
        (folder / f"{name}.pem").write_bytes(plain)
        public = key.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pub").write_bytes(public)
    locked = private["ours"].private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"x"))
    (folder / "locked.pem").write_bytes(locked)
    return folder


@pytest.fixture
def artifact(engine_folder, tmp_path):
    for path in (engine_folder / FP32, manifest_path(engine_folder / FP32)):
        shutil.copy(path, tmp_path)
    return tmp_path / FP32


def test_a_signature_fits_its_manifest_and_key_alone(artifact, keys):
    with pytest.raises(EngineError, match=rf"has no signature {FP32}\.json\.sig"):
        require_signature(artifact, keys / "ours.pub")
    assert sign_command.main([str(artifact), "--key", str(keys / "ours.pem")]) == 0
    assert len(signature_path(artifact).read_bytes()) == 64
    require_signature(artifact, keys / "ours.pub")
    open_session(artifact, threads=1, require_signature=keys / "ours.pub").close()
    for key, complaint in (
        ("theirs.pub", "does not fit"),
        ("rsa.pub", "another kind of key than Ed25519"),
        ("ours.pem", "is no public key"),
        ("none.pub", "no such file, wanted a public Ed25519 key"),
    ):
        with pytest.raises(EngineError, match=complaint):
            open_session(artifact, threads=1, require_signature=keys / key)
    signature = signature_path(artifact).read_bytes()
    for content in (b"", signature[:-1], signature + b"x", bytes([signature[0] ^ 1]) + signature[1:]):
        signature_path(artifact).write_bytes(content)
        with pytest.raises(EngineError, match="does not fit"):
            require_signature(artifact, keys / "ours.pub")


@pytest.mark.filterwarnings("ignore:.*not verified in:RuntimeWarning")
def test_only_a_signed_engine_labels_where_that_is_asked(artifact, keys, photos, tmp_path, capsys):
    asked = "--require-signature", str(keys / "ours.pub")
    assert label(artifact, photos, tmp_path / "out", *asked) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"has no signature {FP32}.json.sig" in line
    assert not (tmp_path / "out").exists()
    sign(artifact, keys / "ours.pem")
    assert label(artifact, photos, tmp_path / "out", *asked) == 0


def test_a_changed_manifest_ends_its_signature(artifact, keys):
    sign(artifact, keys / "ours.pem")
    replace(read_manifest(artifact), verification={"onnxruntime-fp32": {"passed": True}}).write(artifact)
    with pytest.raises(EngineError, match="or the manifest changed since, as when it is verified"):
        require_signature(artifact, keys / "ours.pub")


def test_what_cannot_sign_is_told(artifact, keys):
    for key, complaint in (("rsa.pem", "another kind"), ("ours.pub", "no private key"), ("locked.pem", "password")):
        with pytest.raises(EngineError, match=complaint):
            sign(artifact, keys / key)
    artifact.write_bytes(artifact.read_bytes() + b"x")
    with pytest.raises(EngineError, match="expected SHA-256"):
        sign(artifact, keys / "ours.pem")
    assert not signature_path(artifact).exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_openssl_reads_the_signature(artifact, keys):
    sign(artifact, keys / "ours.pem")
    command = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(keys / "ours.pub")]
    command += ["-sigfile", str(signature_path(artifact)), "-in", str(manifest_path(artifact))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "Verified Successfully" in done.stdout, done.stderr
