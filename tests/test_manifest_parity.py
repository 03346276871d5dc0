"""The manifest's readers in Python and C++ accept and refuse the same: one list of texts goes through both."""

import copy
import json
import random
import struct
from pathlib import Path

import pytest

from segmenter_engines.manifest import Manifest
from segmenter_engines.manifest_fields import FieldError, read_fields
from segmenter_engines.verified import facts_digest
from tests.cpp_build import run
from tests.hostile_files import forged_manifests
from tests.manifest_cases import FACE, GRAPH, HONEST, VALUES, field_cases, json_cases

pytestmark = pytest.mark.slow

MUTATIONS = 500


def places(value: object) -> list[tuple[object, object]]:
    """Every (container, key) in a value."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    return [(value, key) for key, _ in inner] + [place for _, one in inner for place in places(one)]


def mutated(chance: random.Random) -> bytes:
    """An honest manifest with one to three faults: of its structure, or of its bytes."""
    odd = (
        *(None, True, 0, -1, 1.5, 2**63, "", "x", "\x1b", "\ud800", FACE * 201, [], {}, [0], {"passed": True}),
        "9.0",
    )
    values = copy.deepcopy(chance.choice((HONEST, GRAPH)))
    structural = chance.random() < 0.5
    for _ in range(chance.randint(1, 3) if structural else 0):
        container, key = chance.choice(places(values))
        kind = chance.randrange(4)
        if kind == 0:
            container[key] = chance.choice(odd)
        elif kind == 1:
            del container[key]
        elif kind == 2:
            other, place = chance.choice(places(HONEST))
            container[key] = copy.deepcopy(other[place])
        elif isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        else:
            container[chance.choice(("x", "passed", "name", str(key) + " "))] = container[key]
    text = bytearray(json.dumps(values, ensure_ascii=chance.random() < 0.5).encode(errors="surrogatepass"))
    words = (
        b"null",
        b"-1",
        b"1e999",
        b"[]",
        b'""',
        b"\\u0000",
        b"\\ud800",
        b"NaN",
        b'"',
        b"\xff",
        b"0",
        b" ",
        b",",
        b"\0",
    )
    for _ in range(0 if structural else chance.randint(1, 3)):
        at, length = chance.randrange(len(text)), chance.randrange(12)
        kind = chance.randrange(4)
        if kind == 0:
            text[at] = chance.randrange(256)
        elif kind == 1:
            del text[at : at + length]
        elif kind == 2:
            start = chance.randrange(len(text))
            text[at:at] = text[start : start + length]
        else:
            text[at : at + length] = chance.choice(words)
    return bytes(text)


@pytest.fixture(scope="module")
def cases() -> dict[str, bytes]:
    chance = random.Random(0)
    forged = {f"forged: {name}": text for name, text in forged_manifests(GRAPH).items()}
    mutations = {f"mutation {index}": mutated(chance) for index in range(MUTATIONS)}
    return {**field_cases(), **json_cases(), **forged, **mutations}


def in_python(text: bytes) -> str:
    try:
        return f"accepted {facts_digest(Manifest(**read_fields(text)))}"
    except FieldError as error:
        return str(error)


@pytest.fixture(scope="module")
def told(cases: dict[str, bytes], cpp_library: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each reader says of each case: [Python's, C++'s]."""
    path = tmp_path_factory.mktemp("manifests") / "all"
    with path.open("wb") as file:
        for text in cases.values():
            file.write(struct.pack("=Q", len(text)) + text)
    done = run(cpp_library / "csrc" / "tests" / "manifest_program", path)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases)  # a message with a line break in it would be two
    path.unlink()
    return {name: [in_python(text), line] for (name, text), line in zip(cases.items(), lines, strict=True)}


def accepts(line: str) -> bool:
    return line.startswith("accepted ")


def test_both_readers_give_the_same_verdicts(told):
    unlike = {name: both for name, both in told.items() if accepts(both[0]) != accepts(both[1])}
    assert unlike == {}


def test_both_readers_hold_verdicts_to_the_same_facts(told):
    unlike = {name: both for name, both in told.items() if accepts(both[0]) and both[0] != both[1]}
    assert unlike == {}
    changed = {name for name, both in told.items() if accepts(both[0]) and both[0] != told["a plan"][0]}
    deciding = {field for field in VALUES if any(name.startswith(f"{field} ") for name in changed)}
    sizes, rest = {"height", "width", "batch", "patch_size"}, {"input", "precision", "outputs", "plugins", "details"}
    assert deciding == {"classes", "preprocess"} | sizes | rest


def test_both_verdicts_are_among_them(told):
    accepted = {name for name, (verdict, _) in told.items() if accepts(verdict)}
    assert {"a plan", "a graph", "not ASCII", "lists 29 deep", "objects 29 deep", "32768 classes"} <= accepted
    # what is wrong with these two is not in their text
    forged = {name for name in accepted if name.startswith("forged: ")}
    assert forged == {"forged: another artifact's name", "forged: the hash of another file"}
    # every field is tried on both sides of what it may be
    for field in VALUES:
        mine = {name for name in told if name.startswith(f"{field} ")}
        assert mine & accepted, field
        assert mine - accepted, field
    mutations = [accepts(verdict) for name, (verdict, _) in told.items() if name.startswith("mutation")]
    assert len(mutations) == MUTATIONS
    assert 20 < sum(mutations) < MUTATIONS - 100  # most faults are told


def test_messages_are_one_line_of_ascii(told):
    for _, line in told.values():
        assert line.isascii()
        assert line.isprintable()
        assert len(line) < 500
