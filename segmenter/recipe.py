"""Recipes: result rows, each as one small YAML file, from the weights it starts from to the figures it should reach."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import yaml

from segmenter.errors import ConfigError

FOLDER = Path(__file__).with_name("recipe_files")
# commands a recipe may have options for, in their order, and the class of their options
STEPS = {
    "pretrained": ("segmenter.pretrained", "Options"),
    "probe": ("segmenter.training.options", "ProbeOptions"),
    "train": ("segmenter.training.options", "TrainOptions"),
    "evaluate": ("segmenter.evaluate", "Options"),
}
_COMMANDS = {"multi_scale": "evaluate"}
_REQUIRED = ("row", "dataset", "decoder", "train", "status")
_OPTIONAL = ("variant", "weights", "pretrained", "probe", "evaluate", "multi_scale", "expected", "gpu_hours", "notes")
_PARTS = {
    "weights": ("file", "url", "source"),
    "expected": ("miou", "miou_multi_scale", "mae", "source"),
    "gpu_hours": ("hours", "source"),
    "status": ("miou", "miou_multi_scale", "file", "not_run"),
}


@dataclass(frozen=True)
class Recipe:
    """One result row. Figures are in percent, but for MAE; parts are mappings with the keys of the file."""

    name: str
    row: str
    dataset: str
    decoder: str
    train: dict[str, Any]
    status: dict[str, Any]
    variant: str | None = None
    weights: dict[str, Any] | None = None
    pretrained: dict[str, Any] | None = None
    probe: dict[str, Any] | None = None
    evaluate: dict[str, Any] | None = None
    multi_scale: dict[str, Any] | None = None  # options of `evaluate` besides its own
    expected: dict[str, Any] | None = None
    gpu_hours: dict[str, Any] | None = None
    notes: str = ""

    def commands(self, weights: str, data: str, out: str) -> dict[str, list[str]]:
        """The commands from weights to figures by name, as arguments of `segmenter`."""
        dataset = ["--dataset", self.dataset]
        on_data = [*dataset, "--data", data]
        found = {}
        start = f"{out}/init"
        if self.pretrained is not None:
            found["pretrained"] = ["pretrained", weights, "--out", start, *dataset, *arguments_of(self.pretrained)]
        if self.probe is not None:
            found["probe"] = ["probe", start, "--out", f"{out}/probed", *on_data, *arguments_of(self.probe)]
            start = f"{out}/probed"
        init = [] if self.pretrained is None else ["--init", start]
        found["train"] = ["train", *on_data, *init, "--out", f"{out}/run", *arguments_of(self.train)]
        evaluate, options = ["evaluate", "--checkpoint", f"{out}/run/last", *on_data], self.evaluate or {}
        found["evaluate"] = [*evaluate, *arguments_of(options)]
        if self.multi_scale is not None:
            found["evaluate, multi-scale"] = [*evaluate, *arguments_of({**options, **self.multi_scale})]
        return found


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def read_recipe(name: str, steps: Sequence[str] = tuple(STEPS)) -> Recipe:
    """A recipe by its name, or from a YAML file by its path.

    steps: commands whose options are held against it, which loads what they need, PyTorch for most.
    Raises ConfigError for an unknown name, and naming what is unknown, missing or of the wrong kind in a file.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
    if path.parent == FOLDER and path.stem not in recipe_names():
        raise ConfigError(f"no recipe {name!r}; `segmenter recipes` lists them, and a path to a YAML file works too")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; check the path") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    _require_keys(path, "a recipe", values, (*_REQUIRED, *_OPTIONAL), _REQUIRED)
    for part, known in _PARTS.items():
        if part in values:
            _require_keys(path, part, values[part], known, known[:1] if part == "weights" else ())
    for step in (*STEPS, "multi_scale"):
        if step in values and (command := _COMMANDS.get(step, step)) in steps:
            _require_options(path, step, command, values[step])
    for part, key in (("row", str), ("dataset", str), ("decoder", str), ("variant", str), ("notes", str)):
        if part in values and not isinstance(values[part], key):
            raise ConfigError(f"{path}: {part} {values[part]!r}: wanted text")
    if ("not_run" in values["status"]) == ("file" in values["status"]):
        raise ConfigError(f"{path}: status: wanted either not_run, and why, or the figures reached and their file")
    return Recipe(name=path.stem, **values)


def arguments_of(options: Mapping[str, Any]) -> list[str]:
    """Options as a command line has them: `crop: [512, 512]` is `--crop 512 512`, a true one its name alone."""
    arguments = []
    for name, value in options.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        else:
            arguments += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return arguments


def with_recipe(arguments: Sequence[str]) -> list[str]:
    """Arguments of `segmenter train` with the options of its `--recipe` before those given; the last of a name counts.

    Raises ConfigError for a recipe that cannot be read, and one that starts from weights where none are given.
    """
    arguments = list(arguments)
    name = _value_of("--recipe", arguments)
    if name is None or {"-h", "--help"} & set(arguments):
        return arguments
    recipe = read_recipe(name, steps=("train",))  # training wants to be there before PyTorch is
    start = _value_of("--init", arguments) or _value_of("--variant", arguments)
    if recipe.weights is not None and start is None:
        raise ConfigError(
            f"recipe {name} starts from {recipe.weights['file']}; import it as `segmenter recipes {name}` says and pass"
            " --init with its folder, or --variant to start from random weights"
        )
    return [*arguments_of({"dataset": recipe.dataset, **recipe.train}), *arguments]


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == option and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def _require_keys(path: Path, part: str, values: object, known: Sequence[str], required: Sequence[str] = ()) -> None:
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: {part}: wanted a mapping, got {type(values).__name__}")
    for name in values:
        if name not in known:
            raise ConfigError(f"{path}: {part} has an unknown key {name!r}; wanted one of {', '.join(known)}")
    for name in required:
        if name not in values:
            raise ConfigError(f"{path}: {part} lacks {name!r}")


def _require_options(path: Path, step: str, command: str, values: object) -> None:
    """Raises ConfigError for an option the command does not have, or a value no command line could hold."""
    module, options_class = STEPS[command]
    known = set(_field_names(getattr(import_module(module), options_class)))
    _require_keys(path, step, values, tuple(sorted(known)))
    assert isinstance(values, dict)
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            number = isinstance(one, (int, float)) and math.isfinite(one)
            if not (number or isinstance(one, (bool, str))):
                raise ConfigError(f"{path}: {step} {name} {value!r}: wanted numbers, text, true or false")


def _field_names(options_class: type) -> Iterator[str]:
    """Names of a dataclass's fields, and of those of the dataclasses in it, which a command line has beside them."""
    for field in fields(options_class):
        kinds = [kind for kind in (field.type, *get_args(field.type)) if isinstance(kind, type) and is_dataclass(kind)]
        if kinds:
            yield from _field_names(kinds[0])
        else:
            yield field.name
