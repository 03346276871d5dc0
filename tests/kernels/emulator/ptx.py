"""PTX as instructions in basic blocks (PTX ISA 8.8, chapters 4, 5 and 7: what Triton writes of it)."""

import re
from dataclasses import dataclass, field

SIZES = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64, "f32": 32, "f64": 64}
END = -1
WARP = 32  # threads
# what leaves a block: the next one is taken when others have come as far, or a condition holds
_LAST = ("bra", "ret", "bar.sync")
_FIRST = ("mbarrier.try_wait",)


class NotKnownError(Exception):
    """PTX that the emulator has no meaning for."""


@dataclass(frozen=True)
class Register:
    """A virtual register of `bits`; 1 is a predicate."""

    index: int
    bits: int


@dataclass(frozen=True)
class Constant:
    """The bits of an immediate operand, negative as they were written."""

    bits: int


@dataclass(frozen=True)
class Name:
    """A special register (`%tid.x`), a parameter, a variable or a label."""

    text: str


@dataclass(frozen=True)
class Vector:
    parts: tuple["Operand", ...]


@dataclass(frozen=True)
class Address:
    """base + offset in bytes; coordinates where a tensor map is addressed."""

    base: "Operand"
    offset: int = 0
    coordinates: tuple["Operand", ...] = ()


Operand = Register | Constant | Name | Vector | Address


def parts_of(operand: Operand) -> tuple[Operand, ...]:
    """Those of a vector, or itself."""
    return operand.parts if isinstance(operand, Vector) else (operand,)


def bits_of(operand: Operand, otherwise: int) -> int:
    """Of a register its size; of a constant or a name, which have none, what is said."""
    return operand.bits if isinstance(operand, Register) else otherwise


@dataclass(frozen=True)
class Instruction:
    op: str
    operands: tuple[Operand, ...]
    guard: Register | None
    unless: bool  # whether the guard must be false
    text: str


@dataclass
class Kernel:
    """A kernel's blocks in order; a block goes on to the next one."""

    threads: int
    parameters: list[str]
    blocks: list[list[Instruction]]
    labels: dict[str, int]
    registers: list[int]  # bits of each


@dataclass
class _Scope:
    name: str
    names: dict[str, str] = field(default_factory=dict)


def parse(text: str) -> Kernel:
    """The kernel of a module that has one. Raises NotKnownError."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)
    entry = re.search(r"\.entry\s+[\w$]+\s*\((.*?)\)\s*(.*?)\{", text, re.DOTALL)
    if entry is None or text.count(".entry") != 1:
        raise NotKnownError("want a module of one kernel")
    threads = re.search(r"\.reqntid\s+(\d+)", entry[2])
    if threads is None:
        raise NotKnownError("want the number of threads (.reqntid)")
    found = re.findall(r"\.param\s[^,]*?([\w$]+)(?:\[\d+\])?\s*(?:,|$)", entry[1].strip())
    return _Parser(text[entry.end() :], Kernel(int(threads[1]), found, [[]], {}, [])).parse()


class _Parser:
    def __init__(self, text: str, kernel: Kernel) -> None:
        self._text, self._kernel = text, kernel
        self._scopes = [_Scope("")]
        self._registers: dict[str, Register] = {}
        self._prefixes: dict[str, int] = {}
        self._count = 0

    def parse(self) -> Kernel:
        at, text = 0, self._text
        while self._scopes:
            at = re.compile(r"\s*").match(text, at).end()  # type: ignore[union-attr]
            if label := re.compile(r"([\w$]+):(?!:)").match(text, at):
                self._label(label[1])
                at = label.end()
            elif text[at] == "{":
                self._count += 1
                inside = self._body(text, at)
                names = re.findall(r"\.reg\s+\.\w+\s+(\w+)\s*;|([\w$]+):(?!:)", inside)
                scope = _Scope(f"{self._count}")
                scope.names = {name: f"{scope.name}.{name}" for pair in names for name in pair if name}
                self._scopes.append(scope)
                at += 1
            elif text[at] == "}":
                self._scopes.pop()
                at += 1
            else:
                end = text.index(";", at)
                self._statement(" ".join(text[at:end].split()))
                at = end + 1
        return self._kernel

    @staticmethod
    def _body(text: str, at: int) -> str:
        depth = 0
        for end in range(at, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if not depth:
                return text[at:end]
        raise NotKnownError("a brace that is not closed")

    def _named(self, name: str) -> str:
        for scope in reversed(self._scopes):
            if name in scope.names:
                return scope.names[name]
        return name

    def _label(self, name: str) -> None:
        if self._kernel.blocks[-1]:
            self._kernel.blocks.append([])
        self._kernel.labels[self._named(name)] = len(self._kernel.blocks) - 1

    def _statement(self, text: str) -> None:
        if declared := re.fullmatch(r"\.reg \.(\w+) (%?\w+)(?:<\d+>)?", text):
            if "<" in text:
                self._prefixes[declared[2]] = SIZES[declared[1]]
            else:
                self._register(self._named(declared[2]), SIZES[declared[1]])
            return
        if text.startswith((".loc", ".file", ".pragma")) or not text:
            return
        guard, unless, rest = None, False, text
        if guarded := re.match(r"@(!?)(%?\w+) ", text):
            operand = self._operand(guarded[2])
            assert isinstance(operand, Register)
            guard, unless, rest = operand, bool(guarded[1]), text[guarded.end() :]
        op, _, tail = rest.partition(" ")
        operands = tuple(self._operand(each) for each in _split(tail))
        blocks = self._kernel.blocks
        if op.startswith(_FIRST) and blocks[-1]:
            blocks.append([])
        blocks[-1].append(Instruction(op, operands, guard, unless, text))
        if op.startswith(_LAST):
            blocks.append([])

    def _register(self, name: str, bits: int) -> Register:
        if name not in self._registers:
            self._registers[name] = Register(len(self._registers), bits)
            self._kernel.registers.append(bits)
        return self._registers[name]

    def _operand(self, text: str) -> Operand:
        text = text.strip()
        if text.startswith("{"):
            return Vector(tuple(self._operand(each) for each in _split(text[1:-1])))
        if text.startswith("["):
            base, *rest = _split(text[1:-1])
            coordinates = self._operand(rest[0]).parts if rest else ()  # type: ignore[union-attr]
            name, _, offset = base.partition("+")
            return Address(self._operand(name), int(offset) if offset else 0, coordinates)
        if "|" in text:
            return Vector(tuple(self._operand(each) for each in text.split("|")))
        if number := re.fullmatch(r"0([fd])([0-9A-Fa-f]+)", text):
            return Constant(int(number[2], 16))
        if re.fullmatch(r"-?(0x[0-9A-Fa-f]+|\d+)U?", text):
            return Constant(int(text.rstrip("U"), 0))
        name = self._named(text)
        if name in self._registers:
            return self._registers[name]
        if (prefix := re.fullmatch(r"(%[a-z]+)\d+", text)) and prefix[1] in self._prefixes:
            return self._register(name, self._prefixes[prefix[1]])
        return Name(name)


def _split(text: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    return [each.strip() for each in parts if each.strip()]
