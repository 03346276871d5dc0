"""ONNX to a TensorRT or TensorRT-RTX plan, strongly typed; RTX builds on any machine, without a GPU.

Precision is what the graph's tensors and Q/DQ nodes say; there are no precision flags. What the builder made of it goes
into a layer report beside the plan, because a quantised ViT whose attention is no longer fused, or whose int8 products
run in fp16, is slower than fp16 and nothing else would show it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from segmenter.cli import run
from segmenter.datasets import Subset, open_dataset
from segmenter.datasets.option import DATASET
from segmenter.errors import EngineError
from segmenter.files import atomic_paths, sha256
from segmenter_engines.build_progress import Bar, Watcher, progress_bar
from segmenter_engines.builder import LEVELS, Built, PlanOptions, build_in_memory
from segmenter_engines.layer_report import LayerReport, linears_of, page_path, report_path
from segmenter_engines.layers_page import page
from segmenter_engines.limits import IMAGES
from segmenter_engines.manifest import (
    Manifest,
    command_line,
    derived_from,
    machine_name,
    manifest_path,
    read_manifest,
    require_out,
    versions_of,
)
from segmenter_engines.shape_profile import Range, profile_of
from segmenter_engines.tensorrt_api import ENGINES, product
from segmenter_engines.timing_cache import cache_folder
from segmenter_engines.verified import graph_verification, unverified


def build(
    source: Path | str,
    out: Path | str,
    *,
    engine: str = "tensorrt-rtx",
    batch: Range | None = None,
    height: Range | None = None,
    width: Range | None = None,
    outputs: Sequence[str] = ("labels",),
    workspace_bytes: int | None = None,
    level: int | None = None,
    timing_cache: str | None = None,
    plugin_library: Path | str | None = None,
    gpus: Sequence[str] = (),
    refit: bool = False,
    report: bool = False,
    watcher: Watcher | None = None,
    say: Callable[[str], None] = print,
) -> Manifest:
    """Build a plan from an exported or quantised graph; manifest and layer report go beside it, all or none.

    source: fp16 or bf16 .onnx, or int8 or fp8 made for the tensorrt target; fp32 builds too. engine: tensorrt-rtx, or
    tensorrt (10 or 11, on a GPU). batch, height, width: min, opt and max; what the graph takes when None, of batches at
    most 8. outputs: of the graph's, those the plan keeps. workspace_bytes: limit of the builder's scratch memory, at
    least 1 MiB; None for no limit. level: of optimisation, 0 (quick build) to 5 (fast plan). timing_cache: folder of
    tensorrt's kernel timings, `none`, or None for the user's cache. plugin_library: path of the library that brings
    the graph's Segmenter* ops. gpus: see `gpu_targets.set_targets`. refit: weights can be replaced later. report: the
    layer report as an HTML page too. watcher: told of the builder's phases. say: takes what is worth a line.
    Raises EngineError when an option is out of range, or the graph does not fit, cannot be parsed or built, naming the
    node where it is known; Unavailable without the engine's package.
    """
    source, out = Path(source), Path(out)
    require_out(out, ".plan", source)
    product(engine)
    if workspace_bytes is not None and not 1 << 20 <= workspace_bytes <= 1 << 50:
        raise EngineError(f"workspace of {workspace_bytes >> 20} MiB: wanted 1 to {1 << 30}; leave it out for no limit")
    if level is not None and level not in LEVELS:
        raise EngineError(f"level {level}: wanted {LEVELS[0]} (quick build) to {LEVELS[-1]} (fast plan)")
    base = read_manifest(source)
    _check(base, source, outputs)
    profile = profile_of(base, batch, height, width)
    chosen = PlanOptions(
        engine=engine,
        precision=base.precision,
        workspace_bytes=workspace_bytes,
        level=level,
        timing_caches=cache_folder(timing_cache, engine),
        plugin_library=None if plugin_library is None else Path(plugin_library),
        plugins=base.plugins,
        gpus=tuple(gpus),
        refit=refit,
    )
    built = build_in_memory(source, profile, outputs, chosen, watcher=watcher, say=say)
    manifest = replace(
        base,
        artifact=out.name,
        kind="plan",
        engine=engine,
        source=derived_from(base),
        batch=profile.batch,
        height=profile.height,
        width=profile.width,
        outputs=tuple(outputs),
        command=command_line(),
        versions=versions_of("onnx") | {engine: built.version},
        machine=machine_name(),
        compute_capabilities=built.compute_capabilities,
        verification=graph_verification(base),
        details={**base.details, **_details(chosen)},
    )
    _write(out, manifest, _report(manifest, built), built, report)
    return read_manifest(out, check_hash=False)


def _details(chosen: PlanOptions) -> dict[str, object]:
    details: dict[str, object] = {"refit": chosen.refit}
    if chosen.level is not None:
        details["level"] = chosen.level
    if chosen.plugin_library is not None:
        details["plugin_library"] = {"name": chosen.plugin_library.name, "sha256": sha256(chosen.plugin_library)}
    return details


def _report(manifest: Manifest, built: Built) -> LayerReport:
    return LayerReport(
        plan=manifest.artifact,
        sha256="",
        engine=manifest.engine,
        version=built.version,
        precision=manifest.precision,
        source=built.told_by,
        attentions=built.asked.attentions,
        linears=linears_of(built.asked, built.layers),
        layers=built.layers,
    )


def _write(out: Path, manifest: Manifest, report: LayerReport, built: Built, with_page: bool) -> None:
    """Plan, manifest and layer report, together: what is read is of one build."""
    paths = [out, manifest_path(out), report_path(out), *([page_path(out)] if with_page else [])]
    with atomic_paths(*paths) as temporaries:
        temporaries[0].write_bytes(built.plan)
        digest = sha256(temporaries[0])
        report = replace(report, sha256=digest)
        details = {**manifest.details, "layers": report.counts(), "layer_faults": list(report.faults())}
        temporaries[1].write_text(replace(manifest, sha256=digest, details=details).text(), encoding="utf-8")
        temporaries[2].write_text(report.text(), encoding="utf-8")
        if with_page:
            temporaries[3].write_text(page(report), encoding="utf-8")
    if not with_page:
        page_path(out).unlink(missing_ok=True)  # of the plan that was here


def _check(base: Manifest, source: Path, outputs: Sequence[str]) -> None:
    if base.kind != "onnx":
        raise EngineError(f"{source}: is a {base.kind} already; build from the .onnx it was made of")
    if base.precision == "int8" and base.details.get("target") != "tensorrt":
        raise EngineError(
            f"{source}: int8 with uint8 activations, which TensorRT does not take; quantise an fp16 export with"
            " --target tensorrt"
        )
    unknown = sorted(set(outputs) - set(base.outputs))
    if unknown or not outputs:
        raise EngineError(f"outputs {unknown or '()'}: the graph has {', '.join(base.outputs)}")


@dataclass(frozen=True)
class Options:
    """Build a TensorRT plan from an exported graph; tensorrt-rtx needs no GPU for it, tensorrt does."""

    source: Annotated[Path, tyro.conf.Positional]
    """The .onnx: an fp16 or bf16 export, or one quantised with --target tensorrt; of fp32 no attention is fused."""
    out: Path
    """The .plan file to write; its manifest and its layer report go beside it."""
    engine: Literal["tensorrt-rtx", "tensorrt"] = "tensorrt-rtx"
    """Runtime the plan is for."""
    batch: tuple[int, int, int] | None = None
    """Smallest, usual and largest batch; the graph's own when left out, at most 8."""
    height: tuple[int, int, int] | None = None
    """Smallest, usual and largest image height in pixels; the graph's own when left out."""
    width: tuple[int, int, int] | None = None
    """Smallest, usual and largest image width in pixels; the graph's own when left out."""
    outputs: tuple[str, ...] = ("labels",)
    """Outputs of the graph the plan keeps: labels, masks, logits, confidence."""
    workspace_mib: int | None = None
    """Limit of the builder's scratch memory in MiB, at least 1; none when left out."""
    level: int | None = None
    """Builder optimisation level, 0 (quick build) to 5 (fast plan); the runtime's own, 3, when left out."""
    timing_cache: str | None = None
    """Folder of tensorrt's kernel timings, or none; the user's cache folder when left out. tensorrt-rtx has none."""
    plugin_library: Path | None = None
    """Library that brings the Segmenter* ops of a graph exported with --lowering plugin. Its code runs here."""
    gpus: tuple[str, ...] = ()
    """Compute capabilities to build for, such as 8.6 12.0; 8.0, 8.6, 8.9 and 12.0 when left out.
    tensorrt builds for this machine's GPU when left out, and with 8.0+ for all from 8.0."""
    refit: bool = False
    """Build so that weights can be replaced later."""
    report: bool = False
    """Write the layer report as an HTML page too: OUT.layers.html."""
    checkpoint: Path | None = None
    """Checkpoint the graph was exported from: the build then ends with a verification, of the graph where no GPU is."""
    dataset: Annotated[str | None, DATASET] = None
    """Dataset of the verification images (validation split)."""
    data: Path | None = None
    """The dataset's folder; shapes needs none."""
    verify_images: int = IMAGES
    """Number of verification images, spread evenly over the split; 0 for all."""


def build_plan(options: Options) -> int:
    limit, samples, checkpoint = options.workspace_mib, None, options.checkpoint
    if (checkpoint is None) != (options.dataset is None):
        raise EngineError("--checkpoint and --dataset belong together: pass both to verify the plan, or neither")
    if options.dataset is not None and checkpoint is not None:
        from segmenter_engines.verify import require_verifiable  # which needs what builds do not

        samples = Subset(open_dataset(options.dataset, options.data, "val"), options.verify_images)
        require_verifiable(options.source, checkpoint, samples)
    with progress_bar() as progress:
        manifest = build(
            options.source,
            options.out,
            engine=options.engine,
            batch=options.batch,
            height=options.height,
            width=options.width,
            outputs=options.outputs,
            workspace_bytes=None if limit is None else limit << 20,
            level=options.level,
            timing_cache=options.timing_cache,
            plugin_library=options.plugin_library,
            gpus=options.gpus,
            refit=options.refit,
            report=options.report,
            watcher=Bar(progress),
            say=lambda line: print(line, file=sys.stderr),
        )
    layers = manifest.details["layers"]
    plugins = f", {layers['plugins']} plugins" if layers["plugins"] else ""
    print(
        f"{options.out}: {manifest.precision}, {options.out.stat().st_size / 1e6:.1f} MB, {layers['total']} layers,"
        f" {layers['fused_attention']} fused attention kernels{plugins}; {ENGINES[options.engine].name}"
        f" {manifest.versions[options.engine]}"
    )
    for fault in manifest.details["layer_faults"]:
        print(f"  slower than the graph asks: {fault}; see `segmenter layers {options.out}`")
    if samples is None or checkpoint is None:
        print(
            f"  {unverified(manifest, f'{manifest.engine}-{manifest.precision}')}: run `segmenter verify {options.out}"
            " --checkpoint CHECKPOINT --dataset DATASET` where it runs, or build with those two options, which verifies"
            " its graph where no GPU is"
        )
    else:
        from segmenter_engines.verify import verify_build

        print(f"{len(samples)} images: {verify_build(options.out, options.source, checkpoint, samples).line()}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return run(build_plan, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
