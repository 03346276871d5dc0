"""What several commands share of their options: what the help says of one, and how a value is checked."""

from collections.abc import Iterable

import tyro

from segmenter.errors import ConfigError

ANY_CHECKPOINT = tyro.conf.arg(help="Checkpoint folder, or an official checkpoint.pth beside its variant.yml.")


def one_of(names: Iterable[str]) -> object:
    """For `Annotated`: shows the names, which another module knows; whether one is known is seen where it is used."""
    return tyro.conf.arg(metavar="{" + ",".join(names) + "}")


def require(holds: bool, option: str, value: object, wanted: str) -> None:
    """Raises ConfigError, naming an option, its value and what is wanted, unless `holds`."""
    if not holds:
        raise ConfigError(f"{option} {value}: wanted {wanted}")


def require_least(options: object, **least: int) -> None:
    """Raises ConfigError, naming the option, where one of these fields is below its least value; None is left out."""
    for name, bound in least.items():
        value = getattr(options, name)
        require(value is None or value >= bound, f"--{name.replace('_', '-')}", value, f"at least {bound}")
