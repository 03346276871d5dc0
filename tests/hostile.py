"""Hostile files put to the public entry points, in a process of its own: `python -m tests.hostile FOLDER ENGINES`.

The process may hold 2 GiB of address space; where its imports take more than 1.5 GiB (PyTorch with CUDA), 1 GiB more.
Every runtime is a stand-in that counts who asks it to read anything. Writes, as JSON on stdout, what became of each
file, how often a runtime was called, and whether code in a file was run.
"""

import json
import os
import pickle
import resource
import shutil
import struct
import sys
import types
from dataclasses import asdict
from pathlib import Path

import onnx
import onnxruntime
import openvino
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

from segmenter import load_model
from segmenter.errors import SegmenterError
from segmenter.files import sha256
from segmenter_engines import open_session
from segmenter_engines.folder import FP32
from segmenter_engines.manifest import Manifest, manifest_path, read_manifest
from segmenter_engines.plan_checks import check_plan
from segmenter_engines.quantize import quantize

GIB = 1 << 30
FLIPS = 1000
calls: list[str] = []
ran = Path("code-was-run")


def count_runtimes() -> None:
    """Put counting stand-ins where a runtime would read an artifact."""

    def counting(name):
        def call(*args, **kwargs):
            calls.append(name)
            raise RuntimeError(f"{name} was called")

        return call

    onnxruntime.InferenceSession = counting("onnxruntime.InferenceSession")
    openvino.Core.read_model = counting("openvino.Core.read_model")
    onnx.load = counting("onnx.load")
    trt = types.ModuleType("tensorrt_rtx")
    trt.__version__ = "1.7.1.116"  # type: ignore[attr-defined]
    trt.Runtime = counting("tensorrt_rtx.Runtime")  # type: ignore[attr-defined]
    sys.modules["tensorrt_rtx"] = trt


def limit_memory() -> int:
    """Bytes of address space this process may hold from here on."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    held = pages * resource.getpagesize()
    limit = 2 * GIB if held < 1.5 * GIB else held + GIB
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return limit


def outcome(attempt) -> str:
    """`refused: ...` for a typed error of one line, `accepted`, or the name of whatever else came."""
    try:
        attempt()
    except SegmenterError as error:
        text = str(error)
        return (
            f"refused: {text}" if "\n" not in text and "\x1b" not in text and text.isprintable() else f"ugly: {text!r}"
        )
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


def forged_manifests(honest: dict) -> dict[str, bytes]:
    """Manifests beside an honest graph, by what is wrong with them."""

    def with_(**changes) -> bytes:
        return json.dumps(honest | changes).encode()

    text = json.dumps(honest)
    missing = {name: value for name, value in honest.items() if name != "classes"}
    return {
        "cut short": text[: len(text) // 2].encode(),
        "not UTF-8": b"\xff\xfe" + text.encode(),
        "nested 100,000 deep": b'{"details": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "nested as deep as a parser just takes": b'{"details": ' + b"[" * 800 + b"]" * 800 + b"}",
        "nested 40 deep": with_(details={"a": json.loads("[" * 40 + "]" * 40)}),
        "a field twice": text.replace('"sha256"', f'"sha256": "{"0" * 64}", "sha256"', 1).encode(),
        "a field too many": with_(run="rm -rf"),
        "a field too few": json.dumps(missing).encode(),
        "an artifact in another folder": with_(artifact="../secret.onnx"),
        "another artifact's name": with_(artifact="other.onnx"),
        "true for a number": with_(patch_size=True),
        "a size beyond bounds": with_(height=[1, 1, 10**12]),
        "min above max": with_(batch=[8, 4, 2]),
        "no numbers": text.replace('"std": [0.5', '"std": [NaN', 1).encode(),
        "numbers beyond a double": text.replace('"std": [0.5', '"std": [1e999', 1).encode(),
        "an integer beyond a double": with_(details={"a": 10**400}),
        "the hash of another file": with_(sha256="0" * 64),
        "escape codes in a name": with_(model="\x1b[2J"),
        "a plan's kind": with_(kind="plan"),
        "a colour too few": with_(palette=honest["palette"][:-1]),
        "a verdict of words": with_(verification={"onnxruntime-fp32": {"passed": "yes"}}),
        "format as text": with_(format="2"),
        "8 MiB": with_(details={"a": "x" * (8 << 20)}),
    }


def outside(graph: onnx.ModelProto) -> dict[str, onnx.ModelProto]:
    """Graphs with values in another file, by where they hide it."""

    def tensor(location: str) -> TensorProto:
        made = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
        made.external_data.add(key="location", value=location)
        return made

    def copy() -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(graph)
        return made

    found = {}
    for name, location in (("above", "../secret.bin"), ("absolute", "/etc/passwd"), ("beside", "w.bin")):
        found[f"initializer {name}"] = copy()
        found[f"initializer {name}"].graph.initializer.append(tensor(location))
    constant = helper.make_node("Constant", [], ["c"], value=tensor("../secret.bin"))
    found["constant"] = copy()
    found["constant"].graph.node.append(constant)
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [4])])
    found["branch of an If"] = copy()
    found["branch of an If"].graph.node.append(
        helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    )
    found["function"] = copy()
    found["function"].functions.append(helper.make_function("d", "f", [], ["c"], [constant], []))
    found["sparse initializer"] = copy()
    found["sparse initializer"].graph.sparse_initializer.add().values.CopyFrom(tensor("../secret.bin"))
    found["mark without a place"] = copy()
    found["mark without a place"].graph.initializer.append(
        TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    )
    return found


class RunsCode:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile_checkpoints(folder: Path, variant: str) -> dict[str, Path]:
    """Official checkpoints that would run code, lie, or exhaust memory, by what they do; and safetensors that lie."""
    pickles = {
        "os.system": pickle.dumps({"model": RunsCode(os.system, f"touch {ran.resolve()}")}),
        "eval": pickle.dumps(RunsCode(eval, f"open({str(ran.resolve())!r}, 'w')")),
        "a billion laughs": pickle.dumps(laughs()),
        "100,000 deep": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "a memo of 2^31": b"\x80\x02]r\xff\xff\xff\x7f.",
        "a string of 2^62": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b"x.",
        "cut short": pickle.dumps({"model": {}})[:-3],
        "a zip that is none": b"PK\x03\x04" + bytes(100),
    }
    found = {}
    for name, content in pickles.items():
        place = folder / f"pickle {name}"
        place.mkdir()
        (place / "checkpoint.pth").write_bytes(content)
        (place / "variant.yml").write_text(variant)
        found[place.name] = place
    place = folder / "pickle in a torch zip"
    place.mkdir()
    torch.save({"model": RunsCode(os.system, f"touch {ran.resolve()}")}, place / "checkpoint.pth")
    (place / "variant.yml").write_text(variant)
    found[place.name] = place
    place = folder / "yaml that runs code"
    place.mkdir()
    torch.save({"model": {}}, place / "checkpoint.pth")
    (place / "variant.yml").write_text(f"net_kwargs: !!python/object/apply:os.system ['touch {ran.resolve()}']\n")
    found[place.name] = place
    return found


def laughs():
    value = ["ha"]
    for _ in range(40):
        value = [value, value]
    return value


def lying_safetensors(folder: Path, honest: Path) -> dict[str, Path]:
    """Checkpoint folders whose weights have a header that lies."""
    save_file({"a": torch.zeros(4)}, folder / "small.safetensors")
    content = (folder / "small.safetensors").read_bytes()
    header = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
    lies = {
        "a header of 2^63": struct.pack("<Q", 1 << 63) + content[8:],
        "a tensor of 4 TiB": struct.pack("<Q", len(header)) + header + bytes(16),
        "cut short": content[:-4],
        "empty": b"",
    }
    found = {}
    for name, text in lies.items():
        place = folder / f"safetensors {name}"
        shutil.copytree(honest, place)
        (place / "model.safetensors").write_bytes(text)
        found[place.name] = place
    return found


def opened(path: Path, engine: str) -> None:
    """Open it; of a plan, do what its session does between the GPU, which is not here, and the runtime."""
    if engine == "tensorrt-rtx":
        check_plan(path, read_manifest(path, check_hash=False), "1.7.1.116", None)
    else:
        open_session(path, engine, threads=1)


def flipped(path: Path, engines: tuple[str, ...]) -> str:
    """Flip one bit of a byte at `FLIPS` places spread over a file, and open it each time; the first outcome unlike."""
    content = path.read_bytes()
    for index in range(FLIPS):
        place = index * len(content) // FLIPS
        with path.open("rb+") as file:
            file.seek(place)
            file.write(bytes([content[place] ^ (1 << index % 8)]))
        for engine in engines if index % 100 == 0 else engines[:1]:
            told = outcome(lambda engine=engine: opened(path, engine))
            if "is not the file its manifest vouches for" not in told:
                return f"byte {place}, {engine}: {told}"
        with path.open("rb+") as file:
            file.seek(place)
            file.write(content[place : place + 1])
    return "refused"


def main(folder: Path, engines: Path) -> None:
    variant = (engines / "variant.yml").read_text()
    honest, graph = read_manifest(engines / FP32), onnx.load(engines / FP32)
    cases: dict[str, str] = {}
    count_runtimes()
    limit = limit_memory()
    path = folder / FP32
    shutil.copy(engines / FP32, path)
    for name, text in forged_manifests(asdict(honest)).items():
        manifest_path(path).write_bytes(text)
        cases[f"manifest: {name}"] = outcome(lambda: open_session(path, threads=1))

    def vouch(manifest: Manifest = honest) -> None:
        text = json.dumps(asdict(manifest) | {"sha256": sha256(path)})
        manifest_path(path).write_text(text)

    for name, forged in outside(graph).items():
        path.write_bytes(forged.SerializeToString())
        vouch()
        for engine in ("onnxruntime", "openvino"):
            told = outcome(lambda engine=engine: open_session(path, engine, threads=1))
            cases[f"values outside, {engine}: {name}"] = told
        cases[f"values outside, quantize: {name}"] = outcome(lambda: quantize(path, folder / "q.onnx", []))
    for name, content in (("no protobuf", b"\xff" * 64), ("cut short", graph.SerializeToString()[:-7])):
        path.write_bytes(content)
        vouch()
        cases[f"graph: {name}"] = outcome(lambda: open_session(path, threads=1))
    vouch()
    with path.open("rb+") as file:
        file.truncate(5 * GIB)  # a hole: it takes no room
    cases["graph: 5 GiB"] = outcome(lambda: open_session(path, threads=1))
    for name, place in hostile_checkpoints(folder, variant).items():
        cases[f"checkpoint: {name}"] = outcome(lambda place=place: load_model(place))
    for name, place in lying_safetensors(folder, engines / "checkpoint").items():
        cases[f"checkpoint: {name}"] = outcome(lambda place=place: load_model(place))
    shutil.copy(engines / FP32, path)
    vouch()
    cases["flips of a graph"] = flipped(path, ("onnxruntime", "openvino"))
    plan = folder / "m.plan"
    shutil.copy(engines / "m.plan", plan)
    told = asdict(honest) | {"artifact": plan.name, "kind": "plan", "engine": "tensorrt-rtx", "sha256": sha256(plan)}
    manifest_path(plan).write_text(json.dumps(told | {"versions": {"tensorrt-rtx": "1.7.1.116"}}))
    cases["flips of a plan"] = flipped(plan, ("tensorrt-rtx",))
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "cases": cases,
                "runtime_calls": calls,
                "code_ran": ran.exists(),
                "limit": limit,
                "cpu_s": used.ru_utime + used.ru_stime,
            }
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.chdir(sys.argv[1])
    main(Path(sys.argv[1]), Path(sys.argv[2]))
