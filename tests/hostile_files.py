"""Files that lie, by what they do: manifests, graphs, official checkpoints and safetensors."""

import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file

RAN = Path("code-was-run")  # in the working folder, where code in a file was


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
        "os.system": pickle.dumps({"model": RunsCode(os.system, f"touch {RAN.resolve()}")}),
        "eval": pickle.dumps(RunsCode(eval, f"open({str(RAN.resolve())!r}, 'w')")),
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
    torch.save({"model": RunsCode(os.system, f"touch {RAN.resolve()}")}, place / "checkpoint.pth")
    (place / "variant.yml").write_text(variant)
    found[place.name] = place
    place = folder / "yaml that runs code"
    place.mkdir()
    torch.save({"model": {}}, place / "checkpoint.pth")
    (place / "variant.yml").write_text(f"net_kwargs: !!python/object/apply:os.system ['touch {RAN.resolve()}']\n")
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
