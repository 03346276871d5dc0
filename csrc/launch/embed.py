"""Turns a folder of `python -m segmenter_kernels.aot` into what a library that launches holds: a table and the fatbins.

`embed.py FOLDER OUT OP...` writes OUT/kernels.cc (the tables of kernels.h) and OUT/fatbins.S, which the assembler fills
with the files themselves, of the ops named. CMake runs it; only Python's standard library is needed.
"""

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FORMAT = 2
# op: names of the forms that are launched here, with their type and size. Others read pixels, write labels of types
# TensorRT has not, or more than labels, or take masks of another layout than plans give
FORMS = {
    "attention": r"attention_(fp16|bf16)_d(\d+)",
    "patch_embed": r"patch_embed_(fp16|bf16)_p(\d+)",
    "mask_scores": r"mask_scores_(fp16|bf16)_k(\d+)",
    "upsample_argmax": r"upsample_argmax_(fp16|bf16)_r(\d+)_int32(?:_few)?",
    "merge_windows": r"merge_windows_(fp32)_planar()(?:_int16)?",
    "resize": r"resize_(u8)()",
    "normalize": r"normalize_(u8)()",
}
BYTES = {"pointer": 8, "i32": 4, "fp32": 4, "map": 128, "shape": 4, "stride": 8, "scratch": 8}
MAX_PARAMETERS, MAX_MAPS, MAX_RANK = 64, 8, 5


def form_of(name: str, ops: Sequence[str]) -> tuple[str, str, int] | None:
    """Op, type and size of a form of one of `ops`; None for what is none."""
    for op in ops:
        if match := re.fullmatch(FORMS[op], name):
            return op, match[1], int(match[2] or 0)
    return None


def check(kernel: dict[str, Any]) -> None:
    """Raises ValueError when the launcher could not launch a kernel as the manifest describes it."""
    launch, name = kernel["launch"], f"{kernel['name']} on sm_{kernel['architecture']}"
    if [each["bytes"] for each in launch] != kernel["parameter_bytes"]:
        raise ValueError(f"{name}: parameters of {kernel['parameter_bytes']} bytes, described otherwise")
    if any(BYTES.get(each["kind"]) != each["bytes"] for each in launch):
        raise ValueError(f"{name}: a parameter of a kind the launcher does not know")
    if kernel["scratch_bytes"]:
        raise ValueError(f"{name}: needs {kernel['scratch_bytes']} bytes of scratch memory; the launcher brings none")
    maps = [each for each in launch if each["kind"] == "map"]
    if len(launch) > MAX_PARAMETERS or len(maps) > MAX_MAPS or len(maps) != len(kernel["descriptors"]):
        raise ValueError(f"{name}: {len(launch)} parameters and {len(maps)} tensor maps; see kernels.h for the limits")
    for box in kernel["descriptors"]:
        # Triton 3.6 has no such boxes, and says nothing of them
        odd = box["fp4_padded"] or box.get("is_im2col", False)
        if box["elem_size"] != 2 or len(box["block_size"]) > MAX_RANK or odd:
            raise ValueError(f"{name}: a tensor map the launcher cannot encode: {box}")


def form(kernel: dict[str, Any], ptx: int) -> tuple[list[str], str]:
    """Lines that define the parts of a kernel on one architecture, and the initialiser of its Form."""
    unique = f"{kernel['name']}_{kernel['architecture']}"
    lines, rows, boxes = [], [], iter(kernel["descriptors"])
    for each in kernel["launch"]:
        box = "nullptr"
        if each["kind"] == "map":
            described = next(boxes)
            box = f"&{unique}_{each['name']}"
            sides = ", ".join(map(str, described["block_size"]))
            rank, swizzle = len(described["block_size"]), described["swizzle"]
            lines.append(f"constexpr Box {unique}_{each['name']} = {{{{{sides}}}, {rank}, {swizzle}}};")
        aligned = str(each["name"] in kernel["aligned"]).lower()
        rows.append(f'{{"{each["name"]}", Kind::{each["kind"]}, {each["axis"]}, {each["bytes"]}, {aligned}, {box}}}')
    constants = {key: value for key, value in kernel["constants"].items() if isinstance(value, int)}
    numbers = ", ".join(f'{{"{key}", {int(value)}}}' for key, value in constants.items())
    lines.append(f"constexpr Parameter {unique}_parameters[] = {{{', '.join(rows)}}};")
    lines.append(f"constexpr Constant {unique}_constants[] = {{{numbers}}};")
    exact = str(kernel["target"].endswith("a")).lower()
    fallback = str(kernel["architecture"] == ptx).lower()
    return lines, (
        f'{{{kernel["architecture"]}, {exact}, {fallback}, "{kernel["symbol"]}", {kernel["threads"]},'
        f" {kernel['dynamic_shared_bytes']}, {unique}_parameters, {unique}_constants}}"
    )


def table(manifest: dict[str, Any], hash: str, ops: Sequence[str]) -> tuple[str, list[str]]:
    """The C++ tables, and the names of the fatbins they refer to."""
    kernels = [kernel for kernel in manifest["kernels"] if form_of(kernel["name"], ops)]
    names = sorted({kernel["name"] for kernel in kernels})
    lines, images = [], []
    for name in names:
        op, kind, size = form_of(name, ops)  # type: ignore[misc]
        forms = []
        for kernel in sorted((each for each in kernels if each["name"] == name), key=lambda each: each["architecture"]):
            check(kernel)
            parts, initialiser = form(kernel, manifest["ptx_fallback"])
            lines += parts
            forms.append(initialiser)
        lines.append(f"constexpr Form {name}_forms[] = {{{', '.join(forms)}}};")
        code = f"segmenter_launch_{name}"
        images.append(f'{{"{name}", Op::{op}, Type::{kind}, {size}, {code}, {name}_forms}}')
    body = "\n".join(lines)
    externs = "\n".join(f"extern const unsigned char segmenter_launch_{name}[];" for name in names)
    listed = ",\n    ".join(images)
    return (
        f'// Written by embed.py.\n#include "kernels.h"\n\nextern "C" {{\n{externs}\n}}\n\n'
        f"namespace segmenter_launch {{\nnamespace {{\n\n{body}\n\nconst Image kImages[] = {{\n    {listed}}};\n\n"
        f'}}  // namespace\n\nconst Kernels kKernels = {{kImages, "{hash}"}};\n\n}}  // namespace segmenter_launch\n'
    ), names


def assembly(folder: Path, names: list[str]) -> str:
    """Source in which the assembler includes every fatbin, hidden from other libraries."""
    parts = ['.section .rodata.segmenter_launch, "a", %progbits']
    for name in names:
        symbol = f"segmenter_launch_{name}"
        parts += [".balign 64", f".globl {symbol}", f".hidden {symbol}", f".type {symbol}, %object", f"{symbol}:"]
        parts += [f'.incbin "{folder / name}.fatbin"', f".size {symbol}, . - {symbol}"]
    return "\n".join([*parts, '.section .note.GNU-stack, "", %progbits']) + "\n"


def main(folder: Path, out: Path, ops: Sequence[str]) -> str | None:
    """Writes both files; returns what is wrong, None when nothing is."""
    try:
        text = (folder / "manifest.json").read_bytes()
        manifest = json.loads(text)
        if manifest["format"] != FORMAT:
            raise ValueError(f"manifest of format {manifest['format']}, wanted {FORMAT}")
        source, names = table(manifest, hashlib.sha256(text).hexdigest()[:16], ops)
        missing = [f"{name}.fatbin" for name in names if not (folder / f"{name}.fatbin").is_file()]
        if lacking := [op for op in ops if not any(form_of(name, [op]) for name in names)]:
            missing.append(f"kernels of {' and '.join(lacking)}")
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
    except (OSError, ValueError, KeyError) as error:
        return f"{folder}: {error}; fill it with `python -m segmenter_kernels.aot --out FOLDER`"
    out.mkdir(parents=True, exist_ok=True)
    for name, content in (("kernels.cc", source), ("fatbins.S", assembly(folder.resolve(), names))):
        (out / name).write_text(content, encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
