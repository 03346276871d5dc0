"""A specialisation to machine code, without a GPU: the same bytes each time, and what is in them."""

import bisect
import contextlib
import hashlib
import importlib
import io
import itertools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from segmenter_kernels import tiles
from segmenter_kernels.cubin import machine_code, resources
from segmenter_kernels.overwritten import overwritten
from segmenter_kernels.parameters import parameters
from segmenter_kernels.specialisation import Specialisation
from segmenter_kernels.ttgir import NotFollowedError

OPS = (
    "add_layernorm",
    "attention",
    "linear",
    "mask_scores",
    "merge_windows",
    "normalize",
    "patch_embed",
    "quantize",
    "quantized_linear",
    "resize",
    "rotate",
    "upsample_argmax",
)
JUDGED_WITH = "3.8"  # other versions of Triton allocate other registers: some forms spill with them, and stay right
PTX_FALLBACK = 80  # PTX of the oldest architecture runs on every newer one, those not known yet included
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9]*)", re.MULTILINE)


@dataclass(frozen=True)
class Compiled:
    """Machine code of one specialisation for one architecture, and what a launcher and a judge must know of it."""

    name: str
    architecture: int
    target: str  # what ptxas compiled for: sm_90a
    symbol: str
    cubin: bytes
    ptx: str
    threads: int
    registers: int
    stack_bytes: int
    shared_bytes: int  # dynamic and static together
    dynamic_shared_bytes: int
    scratch_bytes: int  # global memory a launch must bring
    scratch_alignment: int
    parameter_bytes: tuple[int, ...]
    descriptors: tuple[dict[str, Any], ...]  # box and swizzle of each tensor map argument
    instructions: dict[str, int]  # how often each occurs; empty where none is wanted, for counting takes time
    warnings: tuple[str, ...]  # of ptxas
    overwritten: tuple[str, ...]  # see `overwritten`
    not_followed: str  # what kept `overwritten` from an answer, empty where nothing did
    specialisation: Specialisation  # without its kernel, so that this can be sent between processes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.cubin).hexdigest()


def specialisations(architecture: int) -> Iterator[Specialisation]:
    """Every form engines launch on an architecture, of all ops."""
    for op in OPS:
        yield from importlib.import_module(f"segmenter_kernels.{op}").specialisations(architecture)


def compile_kernel(specialisation: Specialisation, architecture: int) -> Compiled:
    """Compile for an architecture, past any cache.

    Raises RuntimeError under TRITON_INTERPRET=1, in which kernels cannot be compiled.
    """
    return compile_kernels([(specialisation, architecture)])[0]


def compile_kernels(forms: Iterable[tuple[Specialisation, int]]) -> list[Compiled]:
    """Compile several, each for its architecture: quicker than one by one, for they are disassembled together.

    Raises RuntimeError as `compile_kernel` does.
    """
    return _counted([_compile(*form) for form in forms])


def _compile(specialisation: Specialisation, architecture: int) -> Compiled:
    if triton.knobs.runtime.interpret:
        raise RuntimeError("TRITON_INTERPRET is set: interpreted kernels cannot be compiled; unset it")
    names = list(specialisation.kernel.arg_names)
    index = {name: (at,) for at, name in enumerate(names)}
    source = ASTSource(
        specialisation.kernel,
        signature={name: specialisation.types.get(name, "constexpr") for name in names},
        constexprs={index[name]: value for name, value in specialisation.constants.items()},
        attrs={index[name]: [["tt.divisibility", 16]] for name in sorted(specialisation.aligned)},
    )
    options = {name: getattr(specialisation, name) for name in ("num_warps", "num_stages", "maxnreg")}
    return compile_source(source, options, replace(specialisation, kernel=None), architecture)


def compile_source(
    source: ASTSource, options: Mapping[str, Any], specialisation: Specialisation, architecture: int
) -> Compiled:
    """Compile what Triton is given, past any cache; what it is a form of is kept beside it. Counts no instructions."""
    log = io.StringIO()
    with _uncached(), contextlib.redirect_stdout(log):
        kernel = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=dict(options))
        cubin, ptx, metadata = kernel.asm["cubin"], kernel.asm["ptx"], kernel.metadata
        buffers, not_followed = _searched(kernel.asm["ttgir"])
    found = resources(cubin)
    target = re.search(r"^\.target\s+(\w+)", ptx, re.MULTILINE)
    assert target is not None
    return Compiled(
        name=specialisation.name,
        architecture=architecture,
        target=target[1],
        symbol=found.symbol,
        cubin=cubin,
        ptx=ptx,
        threads=found.threads,
        registers=found.registers,
        stack_bytes=found.stack_bytes,
        shared_bytes=metadata.shared + found.shared_bytes,
        dynamic_shared_bytes=metadata.shared,
        scratch_bytes=metadata.global_scratch_size,
        scratch_alignment=metadata.global_scratch_align,
        parameter_bytes=found.parameter_bytes,
        descriptors=tuple(metadata.tensordesc_meta or ()),
        instructions={},
        warnings=tuple(line for line in log.getvalue().splitlines() if "warning" in line.lower() or "C75" in line),
        overwritten=buffers,
        not_followed=not_followed,
        specialisation=specialisation,
    )


def _searched(ttgir: str) -> tuple[tuple[str, ...], str]:
    """Buffers overwritten under a running product, and why there is no answer, empty where there is one."""
    try:
        return overwritten(ttgir), ""
    except NotFollowedError as error:
        return (), str(error)


@contextlib.contextmanager
def _uncached() -> Iterator[None]:
    """No line numbers, which name folders of this machine; the assembler's log printed; a cache of one compilation."""
    knobs = triton.knobs
    with tempfile.TemporaryDirectory() as folder, knobs.compilation.scope(), knobs.nvidia.scope(), knobs.cache.scope():
        knobs.compilation.disable_line_info = True
        knobs.nvidia.dump_ptxas_log = True
        knobs.cache.dir = folder
        yield


def _counted(kernels: Sequence[Compiled]) -> list[Compiled]:
    """The kernels with their instructions counted, where some are wanted, by the disassembler Triton brings.

    It takes half a second to start, so it is given all machine code of a target at once.
    """
    wanted = [at for at, each in enumerate(kernels) if each.specialisation.matrix or each.specialisation.asynchronous]
    found: list[Counter[str]] = [Counter() for _ in kernels]
    for target in sorted({kernels[at].target for at in wanted}):
        same = [at for at in wanted if kernels[at].target == target]
        codes = [machine_code(kernels[at].cubin) for at in same]
        ends = list(itertools.accumulate(map(len, codes)))
        for address, name in _INSTRUCTION.findall(_disassembled(b"".join(codes), target)):
            found[same[bisect.bisect_right(ends, int(address, 16))]][name] += 1
    pairs = zip(kernels, found, strict=True)
    return [replace(each, instructions=dict(counts.most_common())) for each, counts in pairs]


def _disassembled(code: bytes, target: str) -> str:
    """A line for each machine instruction, its address in front."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "code"
        file.write_bytes(code)
        binary = target.replace("sm_", "SM")
        command = [triton.knobs.nvidia.nvdisasm.path, "--binary", binary, "--no-dataflow", str(file)]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def faults(kernel: Compiled) -> list[str]:
    """Why a kernel must not be deployed; empty when it may."""
    wanted, found = kernel.specialisation, past_limits(kernel)
    # warp specialisation adds warps, so the count may be larger than asked and never smaller
    if kernel.threads < 32 * wanted.num_warps:
        found.append(f"{kernel.threads} threads, asked for {32 * wanted.num_warps}")
    described = tuple(each.bytes for each in parameters(wanted.types, kernel.architecture))
    if kernel.parameter_bytes != described:
        found.append(f"parameters of {list(kernel.parameter_bytes)} bytes, described as {list(described)}")
    if wanted.matrix and not _has(kernel, _matrix_pattern(kernel.architecture)):
        found.append("no tensor-core instruction")
    if wanted.asynchronous:
        by_descriptor = any(kind.startswith("tensordesc") for kind in wanted.types.values())
        name = "UTMALDG" if by_descriptor and tiles.has_descriptors(kernel.architecture) else "LDGSTS"
        if not _has(kernel, name):
            found.append(f"no asynchronous copy ({name})")
    return found


def past_limits(kernel: Compiled) -> list[str]:
    """Why a kernel is of no use, whatever it is for: it does not fit, spills, is made slow by ptxas, or may be wrong.

    Limits: CUDA C++ Programming Guide, table of compute capabilities. A stack frame means registers were spilt.
    """
    limit = tiles.SHARED_MEMORY_BYTES[kernel.architecture]
    found = []
    if kernel.stack_bytes:
        found.append(f"stack frame of {kernel.stack_bytes} bytes: registers spilt")
    if kernel.registers * kernel.threads > 65536:
        found.append(f"{kernel.registers} registers x {kernel.threads} threads pass 65536")
    if kernel.shared_bytes > limit:
        found.append(f"{kernel.shared_bytes} bytes of shared memory, limit {limit}")
    found.extend(f"ptxas: {line}" for line in kernel.warnings)
    found.extend(f"{name}: overwritten while a product still reads it" for name in kernel.overwritten)
    if kernel.not_followed:
        found.append(f"cannot be followed: {kernel.not_followed}")
    return found


def _matrix_pattern(architecture: int) -> str:
    return {90: "[A-Z]GMMA", 100: "UTC[A-Z]*MMA"}.get(architecture, "[A-Z]MMA")


def _has(kernel: Compiled, pattern: str) -> bool:
    return any(re.fullmatch(pattern, name) for name in kernel.instructions)
