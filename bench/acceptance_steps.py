"""What `bench.acceptance` does, in its order: the steps of a machine. This file needs nothing but Python."""

import argparse
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RUNS = "runs"  # folder of what steps measured
GROUPS = ("machine", "kernels", "tune", "engines", "stages", "accuracy")
NEEDS = {"tune": "a GPU and --tune", "accuracy": "--folder"}  # of groups that not every run has
# in processes of their own: one that spoils the GPU's context takes no other along
KERNELS = {
    "attention": ("attention",),
    "bound by memory": ("upsample_argmax", "patch_embed", "add_layernorm", "layernorm", "mask_scores"),
    "products": ("linear_gelu", "linear_residual", "linear_int8", "linear_fp8"),
    "others": ("layernorm_quantize", "quantize", "merge_windows", "rotate", "resize", "normalize"),
}
TESTED: tuple[str, ...] = (
    "attention",
    "upsample_argmax",
    "patch_embed",
    "mask_scores",
    "add_layernorm",
    "linear",
    "quantized_linear",
)
TESTED += (
    "layernorm_quantize",
    "quantize",
    "eight_bits",
    "merge_windows",
    "resize",
    "normalize",
    "rotate",
    "triton_session",
    "training",
    "on_gpu",
)
# the compiled rival tunes for minutes (151 s in all for batch 8 on an H100), so it runs once a batch size, beside the
# engines it is held against
RIVALS = ("gpu-sdpa", "triton-fp16", "triton-int8", "triton-fp8", "compiled-fp16")
ATTENTION_CASES = ("16-64", "16-64_few", "16-64_short", "16-64_long")
VARIANTS = ("Seg-B-Mask/16", "Seg-Ti-Mask/16", "Seg-S-Mask/16", "Seg-L-Mask/16", "Seg-B/8")
GPU = ("torch", "triton")
BENCH = ("torch", "numpy", "PIL", "rich", "tyro", "safetensors", "segmenter_trt._native")
ON_GPU = ("official", "eager", "compiled", "gpu", "triton", "eomt-style")
EXPORTED = ("official", "triton-fp16", "onnxruntime", "tensorrt-rtx", "tensorrt")  # what takes an export, and a build


@dataclass(frozen=True)
class Step:
    """A process: `python -m module arguments`, at most `limit_s` seconds. needs: packages it cannot do without."""

    name: str
    group: str
    module: str
    arguments: tuple[str, ...]
    limit_s: float
    needs: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """As someone else would type it into a shell."""
        return shlex.join(["python", "-m", self.module, *self.arguments])


def plan(options: argparse.Namespace, gpu: bool, bare: bool = False) -> list[Step]:
    """The steps of a machine, the most valuable first. bare: without the packages that engines need."""
    out, models = str(Path(options.out) / RUNS), str(Path(options.out) / "models")
    steps = [Step("machine", "machine", "segmenter_bench.machine_step", ("--out", out), 120, ("torch",))]
    if gpu:
        steps += _on_gpu(out, options.tune)
    else:
        code = ("--architectures", "90", "--only", "attention_fp16", "--workers", "2")
        steps.append(Step("kernel code", "kernels", "segmenter_kernels.aot", code, 180, ("triton",)))
    # many short rounds on a CPU: others' work there moves single rounds, and a ratio is the median of them
    turns = ("--rounds", "5" if gpu else "9", "--burst-seconds", "0.3", "--images", "2")
    pace = (*turns, "--out", out, "--cache", models)
    for name in VARIANTS if gpu else VARIANTS[1:2]:
        # the official way again at each variant: ratios are of one run
        engines, batches = (ON_GPU, ("1", "8", "32")) if gpu else (("all",), ("1",))
        arguments = ("--variant", name, "--engine", *engines, "--batch", *batches, "--network", *pace)
        if bare and not (gpu and name == VARIANTS[0]):
            steps.append(_network(name, batches, out, gpu))
        steps.append(Step(f"engines {name}", "engines", "segmenter_bench.throughput", arguments, 480, BENCH))
        kernels = ("--ops", "triton", "--batch", "8") if gpu else ("--rounds", "3")
        stages = ("--variant", name, *kernels, "--out", out)
        steps.append(Step(f"stages {name}", "stages", "segmenter_bench.stages", stages, 120, BENCH))
    if gpu:
        # last, for it exports and builds first
        exported = ("--variant", VARIANTS[0], "--engine", *EXPORTED, "--batch", "1", "8")
        steps.append(Step("exported engines", "engines", "segmenter_bench.throughput", (*exported, *pace), 480, BENCH))
        # other widths, then the edges of every kernel
        steps.append(_kernels("all widths", tuple(op for ops in KERNELS.values() for op in ops), out, 300))
        files = [*(f"tests/kernels/test_{name}.py" for name in TESTED), "tests/test_cpp_gpu.py"]
        workers = str(min(os.cpu_count() or 1, 16))
        tests = (*files, "-q", "-n", workers, "-m", "not slow", "--continue-on-collection-errors")
        steps.append(Step("kernel tests", "kernels", "pytest", tests, 480, (*GPU, "pytest", "xdist")))
    if options.folder:
        # how accurate an engine is comes before how fast
        data = ("--data", options.data) if options.data else ()
        judged = ("--folder", options.folder, "--dataset", options.dataset, *data, "--out", out)
        timed = (*judged, *turns[:4])
        steps[1:1] = [
            Step("accuracy", "accuracy", "segmenter_bench.miou", (*judged, "--limit", str(options.images)), 600, BENCH),
            Step("engines of the folder", "engines", "segmenter_bench.throughput", timed, 300, BENCH),
        ]
    return [step for step in steps if not options.only or step.group in options.only]


def _on_gpu(out: str, tune: bool) -> list[Step]:
    """What `segmenter_bench.targets` asks of a GPU, at Seg-B's sizes, after its kernels were judged there."""
    name = VARIANTS[0]
    steps = [Step("kernels judged", "kernels", "segmenter_bench.kernel_check", ("--out", out), 180, GPU)]
    if tune:
        # fp16 with 64 channels a head, and 16 rows of pixels a row of patches
        steps.append(_tune("attention", "upsample_argmax", "--case", *ATTENTION_CASES, "16"))
    steps += [_kernels(group, KERNELS[group], out, 120, "B") for group in ("attention", "bound by memory")]
    steps.append(_network(name, ("1", "8"), out, gpu=True))
    for batch in ("8", "1"):
        against = ("--variant", name, "--batch", batch, "--way", *RIVALS, "--rounds", "5", "--out", out)
        steps.append(
            Step(f"compiled {name}, batch {batch}", "engines", "segmenter_bench.network_step", against, 300, GPU)
        )
    steps += [_kernels(group, KERNELS[group], out, 120, "B") for group in ("products", "others")]
    if tune:
        steps += [_tune("linear_gelu", "linear_residual"), _tune("linear_int8")]
    return steps


def _kernels(name: str, ops: Sequence[str], out: str, limit_s: float, *widths: str) -> Step:
    wide = ("--width", *widths) if widths else ()
    return Step(
        f"kernels {name}", "kernels", "segmenter_bench.kernel_step", ("--op", *ops, *wide, "--out", out), limit_s, GPU
    )


def _tune(*ops: str) -> Step:
    """Into the checkout, so that what follows runs with the tiles it finds; they are in its log too."""
    return Step(f"tune {ops[0]}", "tune", "segmenter_kernels.tune", ("--op", *ops), 150, GPU)


def _network(name: str, batches: Sequence[str], out: str, gpu: bool) -> Step:
    arguments = ("--variant", name, "--batch", *batches, "--rounds", "5" if gpu else "9", "--out", out)
    return Step(f"network {name}", "engines", "segmenter_bench.network_step", arguments, 300, GPU if gpu else GPU[:1])
