"""Made-up benchmark runs as the commands write them: trained and random networks, failures, values left out."""

import numpy as np

from segmenter.config import default_palette
from segmenter_bench.examples import label_map, photo

CLASSES = ("sky", "building", "pole", "road & kerb", "<tree>", "car", "cyclist")
SPEEDS = {
    "official": ("fp32", 1.9, 0.6285, 1.0),
    "official-channels-last": ("fp32", 3.4, None, 1.0),
    "official-inference": ("fp32", 1.3, None, 1.0),
    "eager": ("fp32", 3.6, 0.6285, 1.0),
    "compiled": ("fp32", 4.1, 0.6285, 1.0),
    "onnxruntime-fp32": ("fp32", 5.2, 0.6285, 0.99999),
    "onnxruntime-int8": ("int8", 9.1, 0.6251, 0.9873),
    "openvino-fp32": ("fp32", 6.0, 0.6285, 0.99998),
    "openvino-bf16": ("bf16", 10.8, 0.6279, 0.9976),
    "openvino-int8": ("int8", 14.9, 0.6243, 0.9861),
}
MACHINE = {
    "cpu": {"model": "Some CPU 9000", "cores": 16, "usable_cores": 8, "flags": ["avx512_vnni", "avx512_bf16"]},
    "memory_bytes": 64 * 2**30,
    "load_average": [0.1, 0.2, 0.3],
    "system": "Linux 6.1",
    "python": "3.12.1",
    "versions": {"torch": "2.13.0", "onnxruntime": "1.32.0"},
    "gpus": [],
    "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
}


def model(name="Seg-S-Mask/14", trained=True):
    return {
        "name": name,
        "classes": list(CLASSES),
        "palette": [list(colour) for colour in default_palette(len(CLASSES))],
        "height": 360,
        "width": 480,
        "trained": trained,
        "weights_sha256": f"{name} {trained}",
    }


def _run(kind, of, **rest):
    return {
        "schema": "segmenter-bench/1",
        "kind": kind,
        "created": "2026-01-02T03:04:05Z",
        "command": f"segmenter bench-{kind} --folder camvid <weights & all>",
        "machine": MACHINE,
        "model": of,
        "notes": [],
        "unavailable": [{"engine": "tensorrt-rtx-int8", "reason": "no NVIDIA driver here (libcuda.so.1 not found)"}],
    } | rest


def throughput_run(trained=True, name="Seg-S-Mask/14", batches=(1, 4)):
    rows = [_speed(engine, batch, trained) for batch in batches for engine in SPEEDS]
    rows.append(_failed("onnxruntime-fp16", "its process was killed by signal 9: <out of memory>"))
    settings = {"threads": 8, "rounds": 6, "burst_seconds": 1.0, "warmup": 2, "reference": "official"}
    timed = {"labels": "uint8 images to uint8 labels, in host memory"}
    notes = [] if trained else ["Random weights: only fp32 engines are judged by agreement."]
    return _run("throughput", model(name, trained), rows=rows, settings=settings, timed=timed, notes=notes)


def _speed(engine, batch, trained):
    precision, images_per_s, _, agreement = SPEEDS[engine]
    ms = 1000 * batch / images_per_s
    speedup = images_per_s / SPEEDS["official"][1]
    return {
        "engine": engine,
        "precision": precision,
        "batch": batch,
        "region": "labels",
        "status": "ok",
        "reason": None,
        "agreement": agreement,
        "agreement_limit": 0.99 if trained or precision == "fp32" else None,
        "timing": {
            **{"batch": batch, "calls": 100, "ms_p50": ms, "ms_p90": 1.1 * ms, "ms_p99": 1.3 * ms},
            "images_per_s": images_per_s,
        },
        "ratio": {"median": speedup, "low": 0.97 * speedup, "high": 1.02 * speedup, "cpu": speedup},
        "describe": {"does": "explicit attention, argmax"} if engine.startswith("official") else {},
        "memory_bytes": 400_000_000 + 10_000_000 * len(engine),
    }


def _failed(engine, reason):
    empty = dict.fromkeys(("timing", "ratio", "memory_bytes", "agreement"))
    row = {"engine": engine, "precision": "fp16", "batch": 1, "region": "labels", "agreement_limit": 0.99}
    return row | empty | {"status": "failed", "reason": reason}


def miou_run(name="Seg-S-Mask/14"):
    rows = [_accuracy(engine) for engine, values in SPEEDS.items() if values[2] is not None]
    rows.append(_failed("onnxruntime-fp16", "91.00% of pixels agree with PyTorch, wanted 99.0%") | {"miou": 0.5512})
    settings = {"threads": 8, "dataset": "camvid", "split": "val", "images": 101, "truth": "eager"}
    return _run("miou", model(name), rows=rows, settings=settings, examples=[example(0), example(1)])


STAGES = ("input copy", "patch embedding", "attention", "projections", "MLP", "norms and residuals", "label copy")


def machine_run():
    rows = [
        {"type": kind, "status": "ok", "tflops": tflops, "gb_per_s": 3352.4}
        for kind, tflops in (("fp16", 989.1), ("int8", 1979.0))
    ]
    return _run("machine", {"name": "GPU 9000"}, rows=rows, settings={})


def stages_run(name="Seg-Ti-Mask/16"):
    work = {"status": "ok", "flops": 5.4e12, "traffic_bytes": 2.5e9, "bound_ms": 0.0051, "share_of_bound": 0.63}
    rows = [
        {"stage": stage, "ms": 1234.5 / (1 + index), "share_of_time": 0.2, **work} for index, stage in enumerate(STAGES)
    ]
    settings = {
        "ops": "triton",
        "dtype": "fp16",
        "batch": 8,
        "device": "GPU 9000",
        "stages_ms": 2467.2,
        "whole_ms": 2400.1,
    }
    settings["ceilings"] = {"tflops": 989.1, "gb_per_s": 3352.4}
    return _run("stages", model(name, trained=False), rows=rows, settings=settings)


def checks_run():
    right = {"status": "ok", "reason": None, "error": 0.002, "budget": 0.004}
    rows = [
        {"op": op, "shape": shape, "dtype": kind, "provider": "triton", **right}
        for op, shape in (("attention", "8 x 1025, 12 x 64"), ("quantize", "8 x 1025 x 768"))
        for kind in ("fp16", "bf16")
    ]
    rows[1] |= {"status": "failed", "reason": "no answer within 120 s", "error": None, "budget": None}
    return _run("checks", {"name": "GPU 9000"}, rows=rows, settings={"truth": "float64", "asked": 9})


def kernels_run():
    rows = [
        {
            **{"op": op, "shape": shape, "dtype": "float16", "provider": provider, "status": "ok", "reason": None},
            **{"ms_p50": ms, "tflops": 412.0 / ms, "gb_per_s": 1600.0, "share": 0.42},
        }
        for op, shape in (("attention", "8x1025x768, 12 heads"), ("upsample_argmax", "8x150x32x32 to 512x512"))
        for provider, ms in (("triton", 0.41), ("eager", 3.2), ("sdpa-efficient", 0.52))
    ]
    wrong = dict.fromkeys(("ms_p50", "tflops", "gb_per_s", "share"))
    rows.append(
        rows[0] | wrong | {"provider": "sdpa-cudnn", "status": "failed", "reason": "RuntimeError: no kernel for <this>"}
    )
    settings = {"dtype": "fp16", "batch": [1, 8], "ceilings": {"tflops": {"float": 989.1}, "gb_per_s": 3352.4}}
    return _run("kernels", {"name": "GPU 9000"}, rows=rows, settings=settings)


def _accuracy(engine):
    precision, _, miou, agreement = SPEEDS[engine]
    loss = 0.6285 - miou
    iou = [0.93, 0.81 - loss, 0.11 - 10 * loss, 0.97, 0.74 - loss, 0.77, None]  # no cyclist anywhere
    return {
        "engine": engine,
        "precision": precision,
        "status": "ok",
        "reason": None,
        "miou": miou,
        "pixel_accuracy": 0.9,
        "mean_accuracy": 0.7,
        "iou": iou,
        "agreement": agreement,
        "agreement_limit": 0.99,
        "drop": loss if engine != "eager" else None,
        "drop_limit": 0.01,
    }


def example(seed):
    random = np.random.default_rng(seed)
    labels = random.integers(0, len(CLASSES), (9, 12), dtype=np.uint8).repeat(40, axis=0).repeat(40, axis=1)
    palette = default_palette(len(CLASSES))
    picture = np.clip(np.asarray(palette, np.int64)[labels] // 2 + random.integers(0, 99, (360, 480, 3)), 0, 255)
    truth = labels.copy()
    truth[:40] = 255
    engines = [engine for engine, values in SPEEDS.items() if values[2] is not None]
    return {
        "name": f"val/<picture {seed}>.png",
        "photo": photo(picture.astype(np.uint8)),
        "truth": label_map(truth, palette),
        "labels": {engine: label_map(np.roll(labels, index, axis=1), palette) for index, engine in enumerate(engines)},
        "agreement": {engine: SPEEDS[engine][3] for engine in engines},
    }
