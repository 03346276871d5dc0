"""What the help of several commands says of an option they share."""

from collections.abc import Iterable

import tyro

ANY_CHECKPOINT = tyro.conf.arg(help="Checkpoint folder, or an official checkpoint.pth beside its variant.yml.")


def one_of(names: Iterable[str]) -> object:
    """For `Annotated`: shows the names, which another module knows; whether one is known is seen where it is used."""
    return tyro.conf.arg(metavar="{" + ",".join(names) + "}")
