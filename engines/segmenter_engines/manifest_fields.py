"""What a manifest's text may be: every field's type and range, as the docstring of `manifest` states them.

A manifest lies beside a file that is about to be run, and may come from anywhere: nothing in it is taken on trust.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from segmenter.config import MAX_CLASSES, Preprocess

FORMAT = 2
PIXELS, NORMALIZED = "pixels", "normalized"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
MAX_BYTES = 4 << 20
MAX_DEPTH = 32  # lists and objects within each other
MAX_SIDE, MAX_BATCH = 1 << 16, 1 << 16

Check = Callable[[Any], Any]


class FieldError(ValueError):
    """What is wrong with a manifest's text, in words that name the field."""


def read_fields(text: bytes) -> dict[str, Any]:
    """The fields of a manifest, as `Manifest` takes them.

    Raises FieldError for whatever is no manifest of this format.
    """
    if len(text) > MAX_BYTES:
        raise FieldError(f"longer than {MAX_BYTES} bytes")
    try:
        values = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_finite_int,
        )
    except RecursionError as error:
        raise FieldError(f"nested deeper than {MAX_DEPTH}") from error
    except ValueError as error:
        raise error if isinstance(error, FieldError) else FieldError(f"no JSON in UTF-8 ({error})") from error
    _check_all_of(values)
    if not isinstance(values, dict):
        raise FieldError(f"wanted an object, got {_shown(values)}")
    if type(values.get("format")) is not int or values["format"] != FORMAT:
        raise FieldError(f"manifest format {_shown(values.get('format'))}, wanted {FORMAT}")
    if unknown := sorted(values.keys() - FIELDS.keys()):
        raise FieldError(f"unknown field {_shown(unknown[0])}")
    if missing := sorted(FIELDS.keys() - values.keys() - OPTIONAL):
        raise FieldError(f"field {missing[0]} is missing")
    for name, value in values.items():
        try:
            values[name] = FIELDS[name](value)
        except FieldError as error:
            raise FieldError(f"{name} {_shown(value)}: wanted {error}") from None
    _check_together(values)
    return values


def _check_together(values: dict[str, Any]) -> None:
    kind, engine = values["kind"], values["engine"]
    if not values["artifact"].endswith(f".{kind}"):
        raise FieldError(f"artifact {_shown(values['artifact'])}: wanted a name that ends with .{kind}, its kind")
    if kind == "plan" and engine == "any":
        raise FieldError("engine 'any': wanted the one the plan was built for")
    if len(values["palette"]) != len(values["classes"]):
        raise FieldError(f"palette of {len(values['palette'])} colours: wanted one for each class")


def _text(limit: int, pattern: str = "", meaning: str = "", *, least: int = 1) -> Check:
    """A string of `least` to `limit` characters, none a control character; all of it fits `pattern`."""

    def check(value: Any) -> str:
        if not isinstance(value, str) or not least <= len(value) <= limit:
            raise FieldError(f"a string of {least} to {limit} characters")
        if re.search("[\x00-\x1f\x7f-\x9f\ud800-\udfff]", value):
            raise FieldError("a string without control characters")
        if pattern and not re.fullmatch(pattern, value, re.ASCII):
            raise FieldError(meaning)
        return value

    return check


def _one_of(*names: str) -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise FieldError(f"one of {', '.join(names)}")
        return value

    return check


def _whole(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        # not isinstance: True is an int to Python
        if type(value) is not int or not low <= value <= high:
            raise FieldError(f"an integer from {low} to {high}")
        return value

    return check


def _number(low: float, high: float) -> Check:
    def check(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise FieldError(f"a number from {low} to {high}")
        return float(value)

    return check


def _list(one: Check, low: int, high: int, *, unique: bool = False) -> Check:
    def check(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or not low <= len(value) <= high:
            raise FieldError(f"a list of {low} to {high}" if low != high else f"a list of {low}")
        found = tuple(one(item) for item in value)
        if unique and len(set(found)) < len(found):
            raise FieldError("a list without the same twice")
        return found

    return check


def _span(high: int) -> Check:
    three = _list(_whole(1, high), 3, 3)

    def check(value: Any) -> tuple[int, int, int]:
        least, usual, most = three(value)
        if not least <= usual <= most:
            raise FieldError("min <= opt <= max")
        return least, usual, most

    return check


def _texts(limit: int, key: int, value: int) -> Check:
    """An object of at most `limit` strings."""
    check_key, check_value = _text(key), _text(value)

    def check(found: Any) -> dict[str, str]:
        if not isinstance(found, dict) or len(found) > limit:
            raise FieldError(f"an object of at most {limit} strings")
        return {check_key(name): check_value(text) for name, text in found.items()}

    return check


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FieldError("an object")
    return value


def _details(value: Any) -> dict[str, Any]:
    """Anything, but for what is read back: the plugin library a plan was built with."""
    library = _object(value).get("plugin_library")
    if library is not None:
        if not isinstance(library, dict) or library.keys() != {"name", "sha256"}:
            raise FieldError("plugin_library as an object of name and sha256")
        _file_name(library["name"])
        _digest(library["sha256"])
    return value


def _preprocess(value: Any) -> Preprocess:
    if not isinstance(value, dict) or value.keys() != {"mean", "std"}:
        raise FieldError("an object of mean and std")
    mean = _list(_number(-1e6, 1e6), 3, 3)(value["mean"])
    return Preprocess(mean=mean, std=_list(_number(1e-6, 1e6), 3, 3)(value["std"]))


def _verification(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    for name, verdict in _object(value).items():
        _text(200)(name)
        if not isinstance(verdict, dict) or type(verdict.get("passed")) is not bool:
            raise FieldError("null, or an object of verdicts, each an object that tells whether it passed")
    return value


_file_name = _text(255, r"(?!\.{1,2}$)[^/\\]+", "the name of a file, without a folder")
_digest = _text(64, "[0-9a-f]{64}", "64 hexadecimal digits in lower case")

FIELDS: dict[str, Check] = {
    "artifact": _file_name,
    "kind": _one_of("onnx", "plan"),
    "engine": _one_of("any", "tensorrt", "tensorrt-rtx"),
    "precision": _one_of(*PRECISIONS),
    "sha256": _digest,
    "source": _texts(16, 100, 1000),
    "model": _text(200),
    "patch_size": _whole(1, 1024),
    "input": _one_of(PIXELS, NORMALIZED),
    "height": _span(MAX_SIDE),
    "width": _span(MAX_SIDE),
    "batch": _span(MAX_BATCH),
    "outputs": _list(_one_of("labels", "masks", "logits", "confidence"), 1, 4, unique=True),
    "classes": _list(_text(200), 1, MAX_CLASSES),
    "palette": _list(_list(_whole(0, 255), 3, 3), 1, MAX_CLASSES),
    "preprocess": _preprocess,
    "command": _text(8000, least=0),
    "versions": _texts(100, 100, 200),
    "machine": _text(500),
    "plugins": _list(_text(100, "[A-Za-z_][A-Za-z0-9_]*", "the name of an op"), 0, 100, unique=True),
    "compute_capabilities": _list(
        _text(6, r"[0-9]{1,2}\.[0-9]\+?", "a compute capability, such as 9.0 or 8.0+"), 0, 100, unique=True
    ),
    "details": _details,
    "verification": _verification,
    "format": _whole(FORMAT, FORMAT),
}
OPTIONAL = {"plugins", "compute_capabilities", "details", "verification"}


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise FieldError(f"field {_shown(name)} is there twice")
        found[name] = value
    return found


def _no_number(text: str) -> NoReturn:
    raise FieldError(f"{text} is no number JSON knows")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise FieldError(f"{text[:20]} is beyond what a double holds")
    return value


def _finite_int(text: str) -> int:
    _finite(text)  # first: to read an integer of thousands of digits is slow, or refused
    return int(text)


def _check_all_of(value: Any) -> None:
    """See that a value is nested no deeper than may be, and holds no half characters, wherever in it."""
    level, depth = [value], 0
    # by levels: Python's stack ends before a hostile nest does
    while level:
        inner: list[Any] = []
        for one in level:
            if isinstance(one, dict):
                inner += (*one, *one.values())
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, str) and re.search("[\ud800-\udfff]", one):
                raise FieldError(f"{_shown(one)} holds a lone surrogate")
        depth += any(isinstance(one, (dict, list)) for one in level)
        if depth > MAX_DEPTH:
            raise FieldError(f"nested deeper than {MAX_DEPTH}")
        level = inner


def _shown(value: Any) -> str:
    """A value as an error shows it: ASCII, one line, short."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
