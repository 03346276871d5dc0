"""Manifests and what is none: valid ones, both sides of every limit, and JSON's own corners."""

import json
from dataclasses import asdict

from segmenter.config import Preprocess
from segmenter_engines.manifest import NORMALIZED, Manifest
from segmenter_engines.manifest_fields import MAX_BYTES

HONEST = json.loads(
    json.dumps(
        asdict(
            Manifest(
                artifact="m.plan",
                kind="plan",
                engine="tensorrt-rtx",
                precision="fp16",
                sha256="0123456789abcdef" * 4,
                source={"onnx": "sha256:00", "checkpoint": "sha256:11"},
                model="small ü",
                patch_size=16,
                input=NORMALIZED,
                height=(32, 64, 128),
                width=(32, 64, 128),
                batch=(1, 1, 4),
                outputs=("labels", "masks"),
                classes=("sky", "tree", "tree"),
                palette=((0, 0, 0), (1, 2, 3), (255, 255, 255)),
                preprocess=Preprocess(),
                command="segmenter build m.onnx --out m.plan",
                versions={"tensorrt-rtx": "1.7.1.116"},
                machine="Linux x86_64",
                plugins=("SegmenterAttention",),
                compute_capabilities=("8.6", "9.0+"),
                details={"plugin_library": {"name": "p.so", "sha256": "0" * 64}, "layers": [1, 2.5, None, "x"]},
                verification={"tensorrt-rtx-fp16": {"passed": True, "faults": [], "miou": 0.5}},
            )
        )
    )
)
GRAPH = HONEST | {"artifact": "m.onnx", "kind": "onnx", "engine": "any"}
TEXT = json.dumps(HONEST)
FACE = "\U0001f600"  # one character, four bytes


def nest(depth: int) -> list:
    """Lists, `depth` of them within each other."""
    made: list = []
    for _ in range(depth - 1):
        made = [made]
    return made


def names(count: int) -> list[str]:
    return [f"a{index}" for index in range(count)]


# Values on both sides of every limit, by field.
VALUES: dict[str, list] = {
    "artifact": [
        *("a.plan", ".plan", "..plan", "a.onnx", "a.plan ", "A.PLAN", "a/b.plan", "a\\b.plan", ".", "..", "", "plan"),
        *("a" * 250 + ".plan", "a" * 251 + ".plan", FACE * 250 + ".plan", FACE * 251 + ".plan", "a\nb.plan"),
        *("a.plan\n", "\u00a0.plan", "\u2028.plan", None, 5, ["a.plan"]),
    ],
    "kind": ["plan", "onnx", "PLAN", "script", "", None, 1, True, ["plan"]],
    "engine": ["tensorrt", "tensorrt-rtx", "any", "onnxruntime", "", None],
    "precision": ["fp32", "fp16", "bf16", "int8", "fp8", "fp64", "FP16", None],
    "sha256": ["a" * 64, "A" * 64, "g" * 64, "0" * 63, "0" * 65, "", "\u0663" * 64, "0" * 63 + "\n", None, 0],
    "source": [
        *({}, dict.fromkeys(names(16), "x"), dict.fromkeys(names(17), "x"), {"a": ""}, {"": "a"}, {"a": 1}),
        *({"a": "x" * 1000}, {"a": "x" * 1001}, {"a" * 100: "x"}, {"a" * 101: "x"}, {"a": FACE * 1000}, {"a\x7f": "b"}),
        *([], None, "x", {"a": None}, {"a": {}}),
    ],
    "model": ["", "x", "x" * 200, "x" * 201, FACE * 200, FACE * 201, "a\x1f", "a\x7f", "a\x80", "a\x9f", "\xa0", "\0"],
    "patch_size": [0, 1, 1024, 1025, -1, 1.0, 1e2, True, None, "1", 2**63, 2**64, -(2**63) - 1, 10**30],
    "input": ["pixels", "normalized", "Pixels", "", None],
    "height": [
        *([1, 1, 1], [1, 1, 65536], [1, 1, 65537], [0, 1, 1], [2, 1, 1], [1, 2, 1], [1, 1], [1] * 4, [], None, 5),
        *([1, 1, True], [1, 1.0, 1], [65536] * 3, [-1, 1, 1], ["1", 1, 1], {"0": 1, "1": 1, "2": 1}, [1, 1, 10**30]),
    ],
    "width": [[7, 8, 9], [9, 8, 7], [1, 1, 65537]],
    "batch": [[1, 1, 65536], [1, 1, 65537], [0, 0, 0], [8, 4, 2]],
    "outputs": [
        *(["labels"], ["labels", "masks", "logits", "confidence"], [], ["labels", "labels"], ["scores"], "labels"),
        *(["labels", "masks", "logits", "confidence", "labels"], [1], None, [None]),
    ],
    "classes": [["a", "b", "c"], ["a", "b"], [], ["a", "b", ""], ["a", "b", "x" * 201], ["a", "b", 3], None, "abc"],
    "palette": [
        [[255, 0, 1]] * 3,
        *([[0, 0, 0]] * 2, [[0, 0, 0]] * 4, [[0, 0, 0], [0, 0, 0], [0, 0, 256]], [[0, 0, 0], [0, 0, 0], [-1, 0, 0]]),
        *([[0, 0], [0, 0], [0, 0]], [[0, 0, 0], [0, 0, 0], [0, 0, 1.0]], [[0, 0, 0], [0, 0, 0], [0, 0, True]], None),
    ],
    "preprocess": [
        *({"mean": [m, 0, 0], "std": [1, 1, 1]} for m in (1e6, -1e6, 1000000, 1000000.1, -1000001, True, "0", None)),
        *({"mean": [0, 0, 0], "std": [s, 1, 1]} for s in (1e-6, 9.9e-7, 0, -1, 1e6, 1000001, 10**30, False)),
        *({"mean": [0, 0], "std": [1, 1, 1]}, {"mean": [0, 0, 0]}, {"mean": [0] * 3, "std": [1] * 3, "x": 1}, [], None),
    ],
    "command": ["", "x" * 8000, "x" * 8001, "a\tb", None],
    "versions": [dict.fromkeys(names(100), "1"), dict.fromkeys(names(101), "1"), {"a": "x" * 200}, {"a": "x" * 201}],
    "machine": ["", "x" * 500, "x" * 501],
    "plugins": [
        *([], names(100), names(101), ["a", "a"], ["_a9"], ["9a"], ["a-b"], ["ü"], [""], ["a" * 100], ["a" * 101]),
        *(["a\n"], [1], None, {}, "a"),
    ],
    "compute_capabilities": [
        *([], ["9.0"], ["9.0", "9.0"], ["9.0", "9.0+"], ["12.0+"], ["123.0"], ["9"], ["9."], ["9.00"], [".0"], ["9,0"]),
        *(["+"], ["9.0++"], ["9.0-"], ["\u0669.\u0660"], [""], ["1.2.3"], [9.0], ["12.0+\n"], None),
        *(
            [f"{a}.{b}" for a in range(10, 20) for b in range(10)],
            [f"{a}.{b}" for a in range(10, 21) for b in range(10)],
        ),
    ],
    "details": [
        *({}, [], None, "x", {"a": nest(30)}, {"a": nest(31)}, {"a": {"b": nest(29)}}, {"a": {"b": nest(30)}}),
        *({"": "\0\x1b\x7f"}, {"a": FACE}, {"a": "\ud800"}, {"a": ["\udfff"]}, {"\ud83d": 1}, {"a": "\ude00\ud83d"}),
        *({"a": 10**308}, {"a": 10**309}, {"a": -(10**309)}, {"a": 2**1024 - 2**970 - 1}, {"a": 2**1024 - 2**970}),
        *({"a": 2**64}, {"a": 1.7976931348623157e308}, {"plugin_library": None}, {"plugin_library": "p.so"}),
        *({"plugin_library": {"name": "p", "sha256": "0" * 64}}, {"plugin_library": {"name": "p"}}),
        *(
            {"plugin_library": {"name": name, "sha256": "0" * 64}}
            for name in ("../p", ".", "..", "", "a" * 255, "a" * 256)
        ),
        *(
            {"plugin_library": {"name": "p", "sha256": "0" * 64, "x": 1}},
            {"plugin_library": {"name": "p", "sha256": 0}},
        ),
    ],
    "verification": [
        *(None, {}, [], "x", {"a": {"passed": True}}, {"a": {"passed": 1}}, {"a": {"passed": None}}, {"a": {}}),
        *(
            {"a": None},
            {"a": []},
            {"": {"passed": True}},
            {"a" * 200: {"passed": False}},
            {"a" * 201: {"passed": True}},
        ),
        *({"a\n": {"passed": True}}, {"a": {"passed": False, "faults": 5, "sha256": []}}),
    ],
    "format": [2, 1, 3, 2.0, True, "2", None, 2**64 + 2],
}
# JSON itself, in the place of `"miou": 0.5` within the verdict.
NUMBERS = (
    *(
        "0",
        "-0",
        "-0.0",
        "1e5",
        "1E+5",
        "1e-400",
        "1e308",
        "1e309",
        "-1e309",
        "1.7976931348623159e308",
        "00",
        "01",
        "1.",
    ),
    *(
        ".5",
        "+1",
        "-",
        "1e",
        "1e+",
        "0x1",
        "1_0",
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "true",
        "True",
        "None",
        "null",
    ),
    *(
        "9" * 308,
        "9" * 309,
        "9" * 5000,
        "0." + "0" * 5000 + "1",
        "1" + "0" * 5000 + "e-5000",
        "\u0661",
        "'a'",
        "// a\n1",
    ),
)
STRINGS = (
    *(r'"\u0041"', r'"\u00"', r'"\ud83d\ude00"', r'"\ud83d"', r'"\ud83d\ud83d\ude00"', r'"\ude00"', r'"\uD83Dx"'),
    *(
        r'"\/\b\f\n\r\t\"\\"',
        r'"\x41"',
        r'"\'"',
        '"a\tb"',
        '"a\nb"',
        '"\x7f"',
        '"\\u0000"',
        '"\0"',
        '"',
        '"a',
        r'"\u 041"',
    ),
)


def json_cases() -> dict[str, bytes]:
    """Texts whose fault, where they have one, is in their JSON."""
    text, plain = TEXT.encode(), TEXT.replace('"miou": 0.5', '"miou": {}').encode()
    values = enumerate((*NUMBERS, *STRINGS))
    cases = {f"value {index}, {value[:40]!a}": TEXT.replace("0.5}", value + "}").encode() for index, value in values}
    raw = {
        *(b"\xff", b"\xc3", b"\xc0\xaf", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xed\x9f\xbf", b"\xf4\x8f\xbf\xbf"),
        *(b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xef\xbb\xbf", b"\xef\xbf\xbf", b"\xc2\x80", b"\x80", b"\0"),
    }
    for bytes_ in sorted(raw):
        cases[f"{bytes_!r} in details"] = text.replace(b'"x"', b'"' + bytes_ + b'"')
        cases[f"{bytes_!r} in a name"] = text.replace(b"small", bytes_)
        cases[f"{bytes_!r} before"] = bytes_ + text
        cases[f"{bytes_!r} behind"] = text + bytes_
        cases[f"{bytes_!r} between"] = text.replace(b", ", b"," + bytes_, 1)
    for space in (
        b" ",
        b"\t",
        b"\r\n",
        b"\v",
        b"\f",
        b"\xa0",
        b"\xc2\xa0",
        b"\xe2\x80\xa8",
        b"\x1a",
        b",",
        b"}",
        b"{}",
    ):
        cases[f"{space!r} around"] = space + text + space
        cases[f"{space!r} after"] = text + space
    for twice in ('"kind"', '"passed"', '"name"', '"mean"', '"onnx"', '"layers"'):
        found = TEXT.index(twice)
        cases[f"{twice} twice"] = (TEXT[:found] + twice + ": 1, " + TEXT[found:]).encode()
    cases["a name twice, once escaped"] = TEXT.replace('"kind"', r'"\u006bind": "plan", "kind"').encode()
    cases["one name in two objects"] = TEXT.replace("[1, 2.5,", '[{"a": 1}, {"a": 1}, 2.5,').encode()
    for depth in (29, 30, 499, 700, 980, 5000, 100_000):
        cases[f"lists {depth} deep"] = plain.replace(b"{}", b"[" * depth + b"]" * depth)
        cases[f"objects {depth} deep"] = plain.replace(b"{}", b'{"a":' * depth + b"1" + b"}" * depth)
        cases[f"{depth} lists alone"] = b"[" * depth + b"]" * depth
        cases[f"{depth} lists left open"] = plain.replace(b"{}", b"[" * depth)
    for size in (MAX_BYTES - 1, MAX_BYTES, MAX_BYTES + 1):
        cases[f"{size} bytes of padding"] = text.ljust(size)
        cases[f"{size} bytes of details"] = text.replace(b'"x"', b'"' + b"x" * (size - len(text) + 1) + b'"')
    wide = MAX_BYTES // 8
    cases["many lists"] = text.replace(b'"x"', b"[]," * wide + b"1")
    others = (
        b"",
        b" ",
        b"[]",
        b"{}",
        b"null",
        b"2",
        b'"x"',
        b"[" + text + b"]",
        b'{"format": 2}',
        b"\xff\xfe",
        text * 2,
    )
    return cases | {f"{other[:20]!r}": other for other in others}


def field_cases() -> dict[str, bytes]:
    """Manifests that differ from an honest one in a field, which tells what the field may be."""
    cases = {"a plan": TEXT.encode(), "a graph": json.dumps(GRAPH).encode()}
    cases["not ASCII"] = json.dumps(HONEST, ensure_ascii=False).encode()
    for name, values in VALUES.items():
        for index, value in enumerate(values):
            cases[f"{name} {index}"] = json.dumps(HONEST | {name: value}).encode()
    for name in HONEST:
        cases[f"without {name}"] = json.dumps({key: value for key, value in HONEST.items() if key != name}).encode()
        cases[f"{name} in capitals"] = TEXT.replace(f'"{name}"', f'"{name.upper()}"', 1).encode()
    for count in (32768, 32769):
        many = {"classes": names(count), "palette": [[0, 0, 0]] * count}
        cases[f"{count} classes"] = json.dumps(HONEST | many).encode()
    for kind in ("onnx", "plan"):
        for engine in ("any", "tensorrt", "tensorrt-rtx"):
            changes = {"artifact": f"a.{kind}", "kind": kind, "engine": engine}
            cases[f"{kind} for {engine}"] = json.dumps(HONEST | changes).encode()
    return cases
