"""Engines for tests of the bench, opened in worker processes: right ones, wrong ones, and ones that die."""

import os
import time

import numpy as np

from segmenter.errors import EngineError
from segmenter_bench.engines import Entry


def fake_entry(name, kind=None, precision="fp32"):
    return Entry(name, "artifact", kind or name, precision, opener="tests.bench_fakes:open_fake")


class Fake:
    """Labels are the red channel modulo 4; `kind` says what is odd about it."""

    def __init__(self, kind, threads):
        self.kind, self.threads = kind, threads
        self.ballast = np.ones(64 << 20, np.uint8) if kind == "large" else None

    def __call__(self, images):
        labels = images[..., 0] % 4
        if self.kind == "official":
            time.sleep(0.02)
        if self.kind == "wrong":
            labels[:, : labels.shape[1] // 2] ^= 1
        if self.kind == "mixes-rows" and len(labels) > 1:
            labels = labels[::-1]
        if self.kind == "dies":
            print("out of luck")
            os._exit(3)
        if self.kind == "raises":
            raise RuntimeError("first line\nsecond line")
        if self.kind == "shapeless":
            labels = labels[..., 0]
        if self.kind == "hangs":
            time.sleep(60)
        return labels

    def masks(self, x):
        return x[:, :1, ::8, ::8]

    def describe(self):
        omp = os.environ["OMP_NUM_THREADS"]
        facts = {"engine": self.kind, "precision": "int8", "threads": self.threads, "omp": omp, "pid": os.getpid()}
        return facts | ({"device": "GPU 9"} if self.kind == "gpu" else {})

    def close(self):
        pass


def open_fake(artifact, engine, floats, threads):
    print("a library greets standard output")
    if engine == "refuses":
        raise EngineError("engine refuses:\n  no driver here")
    return Fake(engine, threads)


class Slowed:
    """A real engine that does its work several times over."""

    times = 4

    def __init__(self, engine):
        self.engine, self.describe, self.close = engine, engine.describe, engine.close

    def __call__(self, images):
        for _ in range(self.times - 1):
            self.engine(images)
        return self.engine(images)


def open_slowed(artifact, engine, floats, threads):
    from segmenter_engines.sessions import open_engine

    return Slowed(open_engine(artifact, engine, threads=threads))
