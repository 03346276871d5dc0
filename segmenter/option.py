"""How the help of a command names what an option takes, where the names are another module's to know."""

from collections.abc import Iterable

import tyro


def one_of(names: Iterable[str]) -> object:
    """For `Annotated`: shows the names; whether one is known is seen where it is used."""
    return tyro.conf.arg(metavar="{" + ",".join(names) + "}")
