"""Kernels whose two tiles of shared memory change places each step: a product reads one, and the other is filled."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import blackwell, hopper

SIDE = gl.constexpr(128)
DEPTH = gl.constexpr(64)


@gluon.jit
def _tile(x_ptr):
    layout: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    row = gl.arange(0, SIDE, gl.SliceLayout(1, layout))
    column = gl.arange(0, DEPTH, gl.SliceLayout(0, layout))
    return gl.load(x_ptr + row[:, None] * DEPTH + column[None, :])


@gluon.jit
def on_hopper(x_ptr, out_ptr, steps, PENDING: gl.constexpr):
    """PENDING: products not waited for when the other tile is filled; 1 is wrong."""
    shared: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    products: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 128, 16])
    x = _tile(x_ptr)
    read = gl.allocate_shared_memory(gl.float16, [SIDE, DEPTH], shared, x)
    filled = gl.allocate_shared_memory(gl.float16, [SIDE, DEPTH], shared, x)
    total = gl.zeros([SIDE, SIDE], gl.float32, products)
    for _ in range(steps):
        total = hopper.warpgroup_mma(read, read.permute((1, 0)), total, is_async=True)
        total = hopper.warpgroup_mma_wait(PENDING, deps=(total,))
        read.store(x)
        read, filled = filled, read
    total = hopper.warpgroup_mma_wait(0, deps=(total,))
    row = gl.arange(0, SIDE, gl.SliceLayout(1, products))
    gl.store(out_ptr + row, gl.sum(total, 1))


@gluon.jit
def on_blackwell(x_ptr, steps, WAITS: gl.constexpr):
    """WAITS: for the product that reads a tile before that tile is filled; without it is wrong."""
    shared: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    x = _tile(x_ptr)
    read = gl.allocate_shared_memory(gl.float16, [SIDE, DEPTH], shared, x)
    filled = gl.allocate_shared_memory(gl.float16, [SIDE, DEPTH], shared, x)
    total = blackwell.allocate_tensor_memory(
        gl.float32, [SIDE, SIDE], blackwell.TensorMemoryLayout([SIDE, SIDE], col_stride=1)
    )
    ended = gl.allocate_shared_memory(gl.int64, [1], blackwell.mbarrier.MBarrierLayout())
    blackwell.mbarrier.init(ended, count=1)
    for step in range(steps):
        blackwell.tcgen05_mma(read, read.permute((1, 0)), total, use_acc=step > 0, mbarriers=[ended])
        # what was read the step before
        filled.store(x)
        if WAITS:
            blackwell.mbarrier.wait(ended, step & 1)
        read, filled = filled, read
    blackwell.mbarrier.invalidate(ended)
