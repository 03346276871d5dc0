"""The emulator itself: programs written by hand, one fault each, and kernels that are known to be wrong."""

import numpy as np
import pytest
import torch

from tests.kernels.emulator import dispatch
from tests.kernels.emulator.block import Block, Launch
from tests.kernels.emulator.memory import FaultError, Global
from tests.kernels.emulator.ptx import NotKnownError, parse
from tests.kernels.uninterpreted import JUDGED, script

HEAD = """
.version 8.8
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry toy(.param .u64 .ptr .global .align 1 toy_param_0)
.reqntid THREADS
{
	.reg .pred 	%p<9>;
	.reg .b16 	%rs<9>;
	.reg .b32 	%r<99>;
	.reg .b64 	%rd<9>;
	ld.param.b64 	%rd1, [toy_param_0];
	mov.u32 	%r1, %tid.x;
	mad.wide.u32 	%rd2, %r1, 4, %rd1;
	mov.b32 	%r2, global_smem;
	shl.b32 	%r3, %r1, 2;
	add.s32 	%r4, %r2, %r3;         // of this thread's word
	xor.b32 	%r5, %r3, 252;
	add.s32 	%r6, %r2, %r5;         // of the thread's at the other end
	setp.eq.b32 	%p1, %r1, 0;
"""
WORD = "st.shared.b32 [%r4], %r1;"
OTHER = "ld.shared.b32 %r10, [%r6];"
BARRIER = "bar.sync 0;"
COPY = "cp.async.ca.shared.global [ %r4 + 0 ], [ %rd2 + 0 ], 0x4;"
RESULT = "st.global.b32 [ %rd2 + 0 ], { %r10 };"


def run(*body: str, threads: int = 64) -> list[int]:
    """The words of an array 0, 1, 2, ..., one a thread, after a program of one block."""
    kernel = parse(HEAD.replace("THREADS", f"{threads}") + "\n".join(body) + "\nret;\n}\n")
    words = torch.arange(threads, dtype=torch.int32)
    arguments = {"toy_param_0": words.data_ptr()}
    memory = Global({"words": words})
    launch = Launch(kernel, dispatch.steps(kernel), arguments, {}, memory, 512, dispatch.granule(kernel), (1, 1, 1))
    Block(launch, (0, 0, 0)).run()
    return words.tolist()


REVERSED = list(range(63, -1, -1))


def test_threads_see_what_others_wrote_before_a_barrier() -> None:
    assert run(WORD, BARRIER, OTHER, RESULT) == REVERSED


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ((WORD, OTHER), "a warp reads shared memory that another writes, without a barrier"),
        ((WORD, BARRIER, OTHER, WORD), "a warp writes shared memory that another reads, without a barrier"),
        ((WORD, "st.shared.b32 [%r6], %r1;"), "a warp writes shared memory that another writes, without a barrier"),
        ((COPY, BARRIER, OTHER), "reads shared memory that a copy still brings"),
        ((COPY, WORD), "writes shared memory that a copy still brings"),
        ((COPY, "cp.async.wait_group 0;", BARRIER, OTHER), "reads shared memory that a copy still brings"),
        ((COPY, "cp.async.commit_group;", "cp.async.wait_group 1;", BARRIER, OTHER), "that a copy still brings"),
        ((COPY, "cp.async.commit_group;", "cp.async.wait_group 0;", OTHER), "without a barrier between"),
        (("st.shared.b32 [%r2], %r1;",), "two threads write different values to one byte"),
        (("ld.shared.b32 %r10, [%r4+512];",), "reads 4 bytes at byte 512 of 512 bytes of shared memory"),
        (("ld.shared.b32 %r10, [%r4+2];",), "address that is no multiple of 4"),
        (("ld.global.b32 { %r10 }, [ %rd2 + 4 ];",), "reads 4 bytes outside of all arrays, at byte 256 of words"),
        (("st.global.b32 [ %rd2 + 256 ], { %r1 };",), "writes 4 bytes outside of all arrays, at byte 256 of words"),
        (("ld.global.b32 { %r10 }, [ %rd2 + 1 ];",), "address that is no multiple of 4"),
        (("add.s32 %r10, %r11, 1;",), "reads a register that nothing was written to"),
        (("@%p1 mbarrier.init.shared::cta.b64 [%r2], 1;", BARRIER, "{", ".reg .pred done;", "wait:",
          "mbarrier.try_wait.parity.shared::cta.b64 done, [%r2], 0;", "@!done bra.uni wait;", "}"),
         "waits for an mbarrier that nothing completes"),
    ],
)  # fmt: skip
def test_a_fault_is_named(body: tuple[str, ...], message: str) -> None:
    with pytest.raises(FaultError, match=message):
        run(*body)


def test_copies_that_were_waited_for_are_there() -> None:
    waited = ("cp.async.commit_group;", "cp.async.wait_group 0;", BARRIER)
    assert run(COPY, *waited, OTHER, RESULT) == REVERSED
    # without a source nothing is read: zeros are written
    assert run("mov.b32 %r10, 0;", COPY.replace("0x4;", "0x4, %r10;"), *waited, OTHER, RESULT) == [0] * 64


def test_threads_part_and_meet_again() -> None:
    found = run(
        "mov.b32 %r10, 100;",
        "setp.lt.u32 %p2, %r1, 40;",
        "@%p2 bra $low;",
        "add.s32 %r10, %r10, %r1;",
        "bra.uni $both;",
        "$low:",
        "sub.s32 %r10, %r10, %r1;",
        "$both:",
        "shl.b32 %r10, %r10, 1;",
        BARRIER,
        RESULT,
    )
    assert found == [2 * (100 - n) if n < 40 else 2 * (100 + n) for n in range(64)]


def test_threads_of_a_loop_leave_it_one_by_one() -> None:
    found = run(
        "mov.b32 %r10, 0;",
        "$loop:",
        "add.s32 %r10, %r10, 2;",
        "setp.lt.u32 %p2, %r10, %r1;",
        "@%p2 bra $loop;",
        RESULT,
    )
    assert found == [max(2, n + n % 2) for n in range(64)]


def test_what_is_not_known_is_named() -> None:
    for line in (
        "sin.approx.f32 %r10, %r1;",
        "cvt.rz.f16.f32 %rs1, %r1;",
        "cvt.rn.tf32.f32 %r10, %r1;",
        "setp.lt.ftz.f32 %p2, %r1, %r1;",
        "prmt.b32.rc8 %r10, %r1, %r1, 0;",
        "max.f64 %rd3, %rd1, %rd1;",
        "ld.local.b32 %r10, [%r4];",
        "mov.u32 %r10, %smid;",
        "@%p1 bar.sync 0;",
        "@%p1 bra $end; shfl.sync.bfly.b32 %r10, %r1, 1, 31, -1; $end:",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%r1,%r1,%r1,%r1}, {%r1,%r1,%r1,%r1}, {%r1,%r1}, {%r1,%r1};",
    ):
        with pytest.raises(NotKnownError):
            run(line)
    for body in ((*ONES, PROXY, REGISTERS, PRODUCT, WAIT), ("@%p3 bra $end;", PRODUCT, "$end:")):
        with pytest.raises(NotKnownError):
            multiply(*body)


# [64, 8] = ones [64, 16] in registers, times ones [8, 16] in the first 256 bytes of shared memory
ONES = ("mov.b32 %r20, 0x3C003C00;", "@%p3 st.shared.b32 [%r4], %r20;", BARRIER)
PROXY = "fence.proxy.async.shared::cta;"
REGISTERS = "wgmma.fence.sync.aligned;"
PRODUCT = (
    "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%r30,%r31,%r32,%r33}, {%r20,%r20,%r20,%r20}, %rd4, 0, 1, 1, 0;"
)
COMMIT, WAIT = "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"
COPIED = "mov.b32 %r40, %r30;"
# a product of what copies brought, fenced before they were waited for, as Triton 3.6 does
COPIED_BYTES = (
    "@%p3 cp.async.ca.shared.global [ %r4 + 0 ], [ %rd2 + 0 ], 0x4;",
    "cp.async.commit_group;",
    PROXY,
    "cp.async.wait_group 0;",
    BARRIER,
    REGISTERS,
    PRODUCT,
)
SUM = "st.global.b32 [ %rd2 + 0 ], { %r30 };"


def multiply(*body: str) -> list[int]:
    """As `run`, of four warps that know the descriptor of the matrix: two halves of rows, 128 bytes apart."""
    descriptor = ("cvt.u64.u32 %rd3, %r2;", "shr.u64 %rd3, %rd3, 4;", "or.b64 %rd4, %rd3, 34360262656;")
    return run("setp.lt.u32 %p3, %r1, 64;", *descriptor, *body, threads=128)


def test_four_warps_multiply() -> None:
    found = multiply(*ONES, PROXY, REGISTERS, PRODUCT, COMMIT, WAIT, SUM)
    assert np.array(found, np.int32).view(np.float32).tolist() == [16.0] * 128
    # a copy before the wait is what Triton 3.9 writes, and the assembler takes both registers for one
    found = multiply(*ONES, PROXY, REGISTERS, PRODUCT, COMMIT, COPIED, WAIT, SUM.replace("%r30", "%r40"))
    assert np.array(found, np.int32).view(np.float32).tolist() == [16.0] * 128


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ((*ONES, REGISTERS, PRODUCT), "reads shared memory that was written and not fenced"),
        ((*ONES, PROXY, PRODUCT), "a product of registers that were written and not fenced"),
        ((*ONES, PROXY, REGISTERS, "add.s32 %r20, %r20, 0;", PRODUCT), "registers that were written and not fenced"),
        ((*ONES, PROXY, REGISTERS, PRODUCT, COMMIT, SUM), "reads a register that a product is still writing"),
        (
            (*ONES, PROXY, REGISTERS, PRODUCT, COMMIT, COPIED, "add.s32 %r41, %r40, 1;"),
            "that a product is still writing",
        ),
        (
            (*ONES, PROXY, REGISTERS, PRODUCT, COMMIT, "mov.b32 %r20, 0;"),
            "writes a register that a product still needs",
        ),
        ((*ONES, PROXY, REGISTERS, PRODUCT, COMMIT, "@%p3 st.shared.b32 [%r4], %r1;"), "a copy or product still reads"),
        ((*ONES, PROXY, REGISTERS, PRODUCT, COMMIT, BARRIER, WAIT, "@%p3 st.shared.b32 [%r4], %r1;"), "another reads"),
        (("mov.b32 %r30, 0;", *ONES, PROXY, REGISTERS, "mov.b32 %r30, 0;", PRODUCT), "written and not fenced"),
        ((*ONES[:2], f"@%p1 {PROXY}", BARRIER, REGISTERS, PRODUCT), "shared memory that was written and not fenced"),
        ((*ONES, *COPIED_BYTES), "shared memory that was written and not fenced"),
        ((*ONES, PROXY, REGISTERS, PRODUCT, COMMIT), "ends while a copy of a tensor or a product still runs"),
    ],
)
def test_a_fault_around_a_product_is_named(body: tuple[str, ...], message: str) -> None:
    with pytest.raises(FaultError, match=message):
        multiply(*body)


@JUDGED
@pytest.mark.parametrize("architecture", [80, 90])
def test_kernels_that_are_wrong_are_found(architecture: int) -> None:
    # one that Triton itself makes wrong for Hopper, and one that reads past the end
    result = script(
        f"""
        import torch
        from tests.kernels.emulator.launch import emulated
        from tests.kernels.emulator.memory import FaultError
        from tests.kernels.wrong_kernels import past_the_end, product_and_squares

        def says(kernel, *arguments, **named):
            try:
                with emulated({architecture}):
                    kernel[(1,)](*arguments, **named)
            except FaultError as error:
                return str(error)
            return ""

        a, b = torch.randn(2, 64, 512, generator=torch.Generator().manual_seed(0)).half()
        right = a.double() @ b.double().T + (a.double() * b.double()).sum(1, keepdim=True)
        for waits in (True, False):
            out = torch.full((64, 64), float("nan"), dtype=torch.float16)
            said = says(product_and_squares, a, b, out, 512, WAITS=waits, num_warps=4, num_stages=4)
            if {architecture} == 90 and not waits:
                assert said.startswith("writes shared memory that a copy or product still reads"), said
            else:
                assert said == "" and (out.double() - right).abs().max() <= right.abs().max() * 2**-10, said
        x = torch.ones(100)
        assert "reads 4 bytes outside of all arrays, at byte 400 of x_ptr" in says(past_the_end, x, x.new_empty(1), 100)
        """
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
@JUDGED
def test_what_is_taken_out_of_compiled_code_is_missed() -> None:
    # each fence and wait of a kernel that copies by tensor maps, and of one that copies by bytes; of the barriers some,
    # for not all of those that Triton writes are needed
    result = script(
        """
        from collections import Counter
        from dataclasses import replace
        import torch
        from segmenter_kernels import linear, mask_scores, tiles
        from tests.kernels.emulator import launch
        from tests.kernels.emulator.memory import FaultError

        KINDS = ("fence.proxy.async", "wgmma.fence", "wgmma.wait_group", "cp.async.wait_group", "mbarrier.init",
                 "mbarrier.arrive", "bar.sync")
        parse, drop, kinds = launch.parse, -1, []

        def parsed(text):
            kernel = parse(text)
            places = [(block, at) for block in kernel.blocks for at, each in enumerate(block)
                      if each.op.startswith(KINDS)]
            kinds[:] = [next(kind for kind in KINDS if block[at].op.startswith(kind)) for block, at in places]
            if drop >= 0:
                block, at = places[drop]
                block[at] = replace(block[at], op="bar.warp.sync", guard=None)
            return kernel

        launch.parse = parsed
        random = torch.Generator().manual_seed(0)
        shapes = ((97, 384), (64, 384), 64, (1, 65, 192), (1, 33, 192), 33)
        x, weight, bias, patches, classes, ones = (torch.randn(shape, generator=random).half() for shape in shapes)
        tile = tiles.of_architecture("linear", "gelu_small", 90)
        for kernel, needed in (
            (lambda: linear(x, weight, bias, tile=tile), ("fence.proxy.async", "wgmma.wait_group", "mbarrier")),
            (lambda: mask_scores(patches, classes, ones, ones, 1e-5), ("fence.proxy", "wgmma.wait", "cp.async.wait")),
        ):
            drop = -1
            with launch.emulated(90):
                right = kernel()
            missed, all_of = Counter(), Counter(kinds)
            for drop in range(len(kinds)):
                try:
                    with launch.emulated(90):
                        wrong = not torch.equal(kernel(), right)
                except FaultError:
                    wrong = True
                missed[kinds[drop]] += wrong
            for kind in all_of:
                assert missed[kind] >= (all_of[kind] if kind.startswith(needed) else 1), (kind, missed, all_of)
            assert all(any(kind.startswith(each) for kind in all_of) for each in needed), all_of
        """
    )
    assert result.returncode == 0, result.stderr
