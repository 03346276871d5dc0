"""Who made an engine: a detached Ed25519 signature over its manifest, which holds the hash of the artifact.

`X.onnx.json.sig` beside `X.onnx.json` holds the 64 bytes of the signature (RFC 8032) of the manifest's bytes, as
OpenSSL writes and reads it. Whatever changes the manifest ends the signature, and a verdict of `segmenter verify` does:
verify, then sign. Keys are PEM files, which OpenSSL makes:

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out public.pem
"""

from pathlib import Path
from typing import Any

from segmenter.errors import EngineError, Unavailable
from segmenter.files import atomic_path
from segmenter_engines.manifest import manifest_path, read_manifest

SIGNATURE_BYTES = 64
KEY_BYTES = 1 << 16  # more is no key


def signature_path(artifact: Path) -> Path:
    """`X.onnx.json.sig` of `X.onnx`."""
    return artifact.with_name(manifest_path(artifact).name + ".sig")


def sign(artifact: Path, key: Path) -> Path:
    """Sign the manifest of an artifact with a private Ed25519 key in PEM; returns the signature's path.

    Raises EngineError when the artifact is not what its manifest says, or the key is none.
    """
    read_manifest(artifact)
    with atomic_path(signature_path(artifact)) as temporary:
        temporary.write_bytes(_key(key, "private").sign(manifest_path(artifact).read_bytes()))
    return signature_path(artifact)


def require_signature(artifact: Path, key: Path) -> None:
    """See that the manifest of an artifact is signed for a public Ed25519 key in PEM, before it is believed.

    Raises EngineError when there is no signature, or it is of another manifest or another key.
    """
    public, path = _key(key, "public"), signature_path(artifact)
    advice = "take the engine from who signed it, or sign it with `segmenter sign` where you vouch for it"
    if not path.is_file() or not manifest_path(artifact).is_file():
        raise EngineError(f"{artifact}: has no signature {path.name} of its manifest beside it; {advice}")
    from cryptography.exceptions import InvalidSignature

    with path.open("rb") as file:
        signature = file.read(SIGNATURE_BYTES + 1)
    try:
        public.verify(signature, manifest_path(artifact).read_bytes())
    except InvalidSignature as error:
        raise EngineError(
            f"{path}: does not fit {manifest_path(artifact).name} and the key {key}: another key signed it, or the"
            f" manifest changed since, as when it is verified; {advice}"
        ) from error


def _key(path: Path, half: str) -> Any:
    """The private or public half of an Ed25519 key."""
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ed25519
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ImportError as error:
        raise Unavailable(
            f"signatures need {error.name or 'cryptography'}, which is not installed; run: pip install"
            " 'segmenter-trt[signing]'"
        ) from error
    if not path.is_file():
        raise EngineError(f"{path}: no such file, wanted a {half} Ed25519 key in PEM; see `segmenter sign --help`")
    with path.open("rb") as file:
        text = file.read(KEY_BYTES)
    kind: type = ed25519.Ed25519PrivateKey if half == "private" else ed25519.Ed25519PublicKey
    try:
        key = load_pem_private_key(text, None) if half == "private" else load_pem_public_key(text)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EngineError(
            f"{path}: is no {half} key in PEM without a password ({error}); make one:"
            " openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem"
        ) from error
    if not isinstance(key, kind):
        raise EngineError(f"{path}: holds another kind of key than Ed25519; see `segmenter sign --help` for how")
    return key
