"""One test or two of every kernel again, on what Triton compiles it to: run by the emulator, in a process of its own.

All of them: `EMULATE=90 pytest tests/kernels/test_attention.py`, and so for every other kernel's.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from segmenter_kernels.compiling import OPS
from tests.kernels.uninterpreted import JUDGED

FOLDER = Path(__file__).parent
# of some the architecture is a parameter
CHOSEN = """
    add_layernorm::test_agrees_with_float64[(2, 97, 384)-torch.float16]
    add_layernorm::test_gradients_agree_with_float64[(2, 9, 200)-torch.float16]
    attention::test_agrees_with_float64[{}-1-97-2-64-torch.float16]
    attention::test_agrees_with_float64[{}-2-17-3-80-torch.bfloat16]
    attention::test_gradients_agree_with_float64[1-97-1-64-torch.float16]
    attention::test_gradients_agree_with_float64[2-1-1-96-torch.bfloat16]
    layernorm_quantize::test_has_the_bits_of_two_steps[(2, 97, 200)-torch.float16-torch.int8]
    linear::test_agrees_with_float64[(97, 768)-64-torch.float16-{}]
    linear::test_gradients_agree_with_float64[torch.float16-{}]
    linear::test_large_tiles_agree_with_float64[1-{}]
    mask_scores::test_agrees_with_float64[(1, 197, 150, 384)-torch.float16]
    mask_scores::test_agrees_with_float64[(1, 65, 33, 64)-torch.bfloat16]
    merge_windows::test_agrees_with_float64[19-(3, 3)-((14, 25), 12, 8, None)-torch.float16]
    normalize::test_every_bit_is_the_cpus[shape2-imagenet]
    patch_embed::test_agrees_with_float64[(1, 112, 70, 14, 200, 2)-torch.float16]
    patch_embed::test_pixels_agree_with_float64[(2, 50, 75, 16, 192, 1)-torch.float16-imagenet]
    quantize::test_has_the_bits_of_the_plain_expression[(2, 197, 200)-torch.float16-torch.int8]
    quantized_linear::test_requantised_results_are_exact_away_from_halves[True-torch.int8-{}]
    resize::test_every_bit_is_the_cpus[(37, 50)-(11, 16)]
    rotate::test_agrees_with_float64[(3, 7, 2, 80)-torch.float16]
    upsample_argmax::test_agrees_with_float64[(1, 4, 3, 5)-(100, 37)-None-torch.float16]
"""
HOPPER = """
    quantized_linear::test_gelu_and_residual_agree_with_float64[False-torch.float8_e4m3fn-torch.float16-{}]
    quantized_linear::test_large_tiles_agree_with_float64[0-1-torch.float8_e4m3fn]
    quantized_linear::test_requantised_results_are_exact_away_from_halves[True-torch.float8_e4m3fn-{}]
"""


def chosen(architecture: int) -> list[str]:
    """The tests of an architecture, as pytest names them."""
    lines = (CHOSEN + HOPPER * (architecture == 90)).split("\n")
    named = [line.strip().format(architecture) for line in lines if line.strip()]
    return [f"{FOLDER / 'test_'}{line.replace('::', '.py::', 1)}" for line in named]


@pytest.mark.slow
@JUDGED
@pytest.mark.parametrize("architecture", [80, 90])
def test_kernels_are_right_as_they_are_compiled(architecture: int) -> None:
    names = chosen(architecture)
    ours = ("TRITON_INTERPRET", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"EMULATE": str(architecture), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider", *names]
    done = subprocess.run(command, cwd=FOLDER.parents[1], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]
    assert f"{len(names)} passed" in done.stdout


def test_every_kernel_is_among_them() -> None:
    assert {name.strip().split("::")[0] for name in CHOSEN.strip().splitlines()} >= set(OPS)
