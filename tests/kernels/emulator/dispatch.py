"""What each instruction of a kernel does."""

import re
from collections.abc import Callable

from tests.kernels.emulator import products, tensors, threads, transfers
from tests.kernels.emulator.block import Block, Step
from tests.kernels.emulator.memory import FaultError
from tests.kernels.emulator.ptx import Instruction, Kernel


def steps(kernel: Kernel) -> list[list[Step]]:
    """What each instruction does. Raises NotKnownError."""
    return [[_step(kernel, each) for each in block] for block in kernel.blocks]


def granule(kernel: Kernel) -> int:
    """The smallest access to shared memory, in bytes, at most 4."""
    ops = [each.op for block in kernel.blocks for each in block if re.match(r"(ld|st)\.shared", each.op)]
    return min([4, *(int(op.rpartition(".b")[2]) // 8 for op in ops)])


def _step(kernel: Kernel, instruction: Instruction) -> Step:
    # one block a cluster: its shared memory is the cluster's
    op = re.sub(r"shared::(cta|cluster)", "shared", instruction.op)
    for pattern, make in _MADE:
        if found := re.fullmatch(pattern, op):
            return threads.guarded(instruction, _naming_it(instruction, make(instruction, found, kernel)))
    return threads.guarded(instruction, threads.computed(instruction))


def _naming_it(instruction: Instruction, act: Step) -> Step:
    def run(block: Block) -> None:
        try:
            act(block)
        except FaultError as error:
            raise FaultError(f"{error} (program {block.place}: {instruction.text[:90]})") from None

    return run


_SIZED = r"(?P<space>global|shared)(?:\.v[24])?\.b(?P<bits>\d+)"
_TYPED = r"(?P<sum>[fs]32)\.(?P<kind>\w+)\.(?P=kind)"  # both factors of one type
_MADE: list[tuple[str, Callable[..., Step]]] = [
    (r"bra(\.uni)?", threads.branch),
    (r"ret", threads.end),
    (r"bar\.sync", threads.barrier),
    (r"bar\.warp\.sync", threads.nothing),
    (r"wgmma\.fence\.sync\.aligned", products.fence_registers),
    (rf"ld\.{_SIZED}", transfers.load),
    (rf"st\.{_SIZED}", transfers.store),
    (r"ld\.param\.[bsu]\d+", transfers.parameter),
    (r"shfl\.sync\.(?P<how>bfly|idx)\.b32", threads.shuffle),
    (r"elect\.sync", threads.elect),
    (r"redux\.sync\.(?P<how>min|max)\.(?P<kind>[su]32)", threads.reduced),
    (r"ldmatrix\.sync\.aligned\.m8n8\.x(?P<n>[124])(?P<trans>\.trans)?\.shared\.b16", products.load_rows),
    (r"stmatrix\.sync\.aligned\.m8n8\.x(?P<n>[124])(?P<trans>\.trans)?\.shared\.b16", products.store_rows),
    (rf"mma\.sync\.aligned\.m16n8k(16|32)\.row\.col(\.satfinite)?\.{_TYPED}\.\w+", products.product),
    (rf"wgmma\.mma_async\.sync\.aligned\.m64n(?P<n>\d+)k\d+\.{_TYPED}", products.group_product),
    (r"wgmma\.commit_group\.sync\.aligned", products.commit_products),
    (r"wgmma\.wait_group\.sync\.aligned", products.wait_products),
    (r"cp\.async\.c[ag]\.shared\.global", transfers.copy),
    (r"cp\.async\.commit_group", transfers.commit_copies),
    (r"cp\.async\.wait_group", transfers.wait_copies),
    (r"mbarrier\.init\.shared\.b64", tensors.make_barrier),
    (r"mbarrier\.inval\.shared\.b64", tensors.drop_barrier),
    (r"mbarrier\.arrive\.expect_tx\.shared\.b64", tensors.arrive),
    (r"mbarrier\.try_wait\.parity\.shared\.b64", tensors.try_wait),
    (r"cp\.async\.bulk\.tensor\.\dd\.shared\.global\.mbarrier::complete_tx::bytes", tensors.load_tensor),
    (r"cp\.async\.bulk\.tensor\.\dd\.global\.shared\.bulk_group", tensors.store_tensor),
    (r"cp\.async\.bulk\.commit_group", tensors.commit_stores),
    (r"cp\.async\.bulk\.wait_group(\.read)?", tensors.wait_stores),
    (r"fence\.proxy\.async\.shared", transfers.fence),
]
