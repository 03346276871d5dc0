"""Sign engines, for `--require-signature` and `open_session(require_signature=...)` to ask for."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from segmenter.cli import run
from segmenter.errors import EngineError
from segmenter_engines.signature import sign


@dataclass(frozen=True)
class Options:
    """Sign engines: X.onnx.json.sig beside each manifest, which `--require-signature` then asks for.

    Make a key with `openssl genpkey -algorithm ed25519 -out key.pem`, and the public half to hand out with
    `openssl pkey -in key.pem -pubout -out public.pem`. Verify first: a verdict changes the manifest, and with it the
    signature no longer fits.
    """

    artifacts: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """The .onnx and .plan files to sign."""
    key: Path
    """Private Ed25519 key, PEM without a password."""


def sign_artifacts(options: Options) -> int:
    if not options.artifacts:
        raise EngineError("nothing to sign; pass at least one .onnx or .plan")
    for artifact in options.artifacts:
        print(f"{sign(artifact, options.key)}: signed")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(sign_artifacts, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
