"""Hostile files put to the public entry points, in a process of its own: `python -m tests.hostile FOLDER ENGINES`.

The process may hold 2 GiB of address space; where its imports take more than 1.5 GiB (PyTorch with CUDA), 1 GiB more.
Every runtime is a stand-in that counts who asks it to read anything. Writes, as JSON on stdout, what became of each
file, how often a runtime was called, and whether code in a file was run.
"""

import json
import os
import resource
import shutil
import sys
import types
from dataclasses import asdict
from pathlib import Path

import onnx
import onnxruntime
import openvino
import torch

from segmenter import load_model
from segmenter.errors import SegmenterError
from segmenter.files import sha256
from segmenter_engines import open_session
from segmenter_engines.folder import FP32
from segmenter_engines.manifest import Manifest, manifest_path, read_manifest
from segmenter_engines.plan_checks import check_plan, read_plan
from segmenter_engines.quantize import quantize
from tests.hostile_files import RAN, forged_manifests, hostile_checkpoints, lying_safetensors, outside

GIB = 1 << 30
FLIPS = 1000
calls: list[str] = []


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


def opened(path: Path, engine: str) -> None:
    """Open it; of a plan, do what its session does between the GPU, which is not here, and the runtime."""
    if engine == "tensorrt-rtx":
        manifest = read_manifest(path, check_hash=False)
        check_plan(path, manifest, read_plan(path, manifest), "1.7.1.116", None)
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
                "code_ran": RAN.exists(),
                "limit": limit,
                "cpu_s": used.ru_utime + used.ru_stime,
            }
        )
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    os.chdir(sys.argv[1])
    main(Path(sys.argv[1]), Path(sys.argv[2]))
