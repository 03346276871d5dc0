"""What a kernel's machine code needs, read from the cubin itself: no CUDA tool and no GPU.

A cubin is an ELF file; ptxas leaves register counts, stack frames and parameter sizes in its `.nv.info` sections as a
list of (format, attribute, payload).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

_NO_BITS = 8  # section type without bytes in the file
_INLINE_VALUE = 4  # format of an attribute whose payload follows; others hold two bytes
_PARAMETER, _REQUIRED_THREADS, _FRAME, _REGISTERS = 0x17, 0x10, 0x11, 0x2F


@dataclass(frozen=True)
class Resources:
    """Of one kernel: registers a thread, stack and static shared memory in bytes, threads, bytes of each parameter."""

    symbol: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    threads: int
    parameter_bytes: tuple[int, ...]


def resources(cubin: bytes) -> Resources:
    """The resources of the one kernel a cubin holds. Raises ValueError when the bytes are no cubin of one kernel."""
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError(f"not a cubin: starts with {cubin[:5]!r}, want a 64-bit ELF file")
    sections = _sections(cubin)
    names = [name.removeprefix(".nv.info.") for name in sections if name.startswith(".nv.info.")]
    if len(names) != 1:
        raise ValueError(f"cubin with {len(names)} kernels: want one")
    found = {_REGISTERS: 0, _FRAME: 0}
    for attribute, payload in _attributes(sections[".nv.info"][1]):
        if attribute in found and len(payload) == 8:
            found[attribute] = max(found[attribute], struct.unpack("<II", payload)[1])
    threads, parameters = 0, []
    for attribute, payload in _attributes(sections[f".nv.info.{names[0]}"][1]):
        if attribute == _REQUIRED_THREADS:
            x, y, z = struct.unpack("<III", payload)
            threads = x * y * z
        elif attribute == _PARAMETER:
            _, ordinal, _, packed = struct.unpack("<IHHI", payload)
            parameters.append((ordinal, packed >> 18))
    shared_bytes, _ = sections.get(f".nv.shared.{names[0]}", (0, b""))
    return Resources(
        symbol=names[0],
        registers=found[_REGISTERS],
        stack_bytes=found[_FRAME],
        shared_bytes=shared_bytes,
        threads=threads,
        parameter_bytes=tuple(size for _, size in sorted(parameters)),
    )


def machine_code(cubin: bytes) -> bytes:
    """The instructions of the one kernel a cubin holds, 16 bytes each. Raises ValueError as `resources` does."""
    symbol = resources(cubin).symbol
    return _sections(cubin)[f".text.{symbol}"][1]


def _sections(cubin: bytes) -> dict[str, tuple[int, bytes]]:
    """Size and bytes of each section by name."""
    (start,) = struct.unpack_from("<Q", cubin, 40)
    count, names_index = struct.unpack_from("<HH", cubin, 60)
    headers = [struct.unpack_from("<IIQQQQIIQQ", cubin, start + 64 * index) for index in range(count)]
    names_at = headers[names_index][4]
    sections = {}
    for name_at, kind, _, _, offset, size, *_ in headers:
        begin = names_at + name_at
        name = cubin[begin : cubin.index(b"\0", begin)].decode()
        sections[name] = size, b"" if kind == _NO_BITS else cubin[offset : offset + size]
    return sections


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(data):
        form, attribute, value = struct.unpack_from("<BBH", data, at)
        at += 4
        if form == _INLINE_VALUE:
            yield attribute, data[at : at + value]
            at += value
        else:
            yield attribute, struct.pack("<H", value)
