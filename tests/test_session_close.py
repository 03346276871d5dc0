"""A session that is closed: its runtime is gone at once, and every call says so."""

import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

from segmenter.errors import EngineError, Unavailable
from segmenter_engines import open_session
from segmenter_engines.folder import CHECKPOINT, FP32
from tests.small_engines import pictures

ENGINES = ("eager", "compiled", "onnxruntime", "openvino")


@pytest.fixture(autouse=True)
def no_machine_code(monkeypatch):
    """Dynamo traces, and what it keeps may hold a network; compiling what it traced would take a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))


def opened(engine_folder, engine, **options):
    path = engine_folder / (CHECKPOINT if engine in ("eager", "compiled") else FP32)
    return open_session(path, engine, threads=1, **options)


@pytest.mark.parametrize(
    ("engine", "mode", "names"),
    [
        ("eager", "latency", ("_model",)),
        ("compiled", "latency", ("_model",)),
        ("onnxruntime", "latency", ("_session",)),
        ("onnxruntime", "throughput", ("_session",)),
        ("openvino", "latency", ("_request",)),
        ("openvino", "throughput", ("_request", "_queue")),
    ],
)
def test_closing_gives_back_the_runtime_at_once(engine_folder, engine, mode, names):
    with opened(engine_folder, engine, mode=mode) as session:
        session(pictures(2))
        session.confidence(pictures(1))
        held = [weakref.ref(getattr(session, name)) for name in names]
    assert [thing() for thing in held] == [None] * len(names)
    session.close()
    assert session.describe()["engine"] == engine


@pytest.mark.parametrize("engine", ENGINES)
def test_every_call_of_a_closed_session_says_so(engine_folder, engine):
    with opened(engine_folder, engine) as session:
        x = session._normalize(pictures(1))
    calls = (
        session,
        session.logits,
        session.confidence,
        lambda _: session.masks(x),
        lambda _: session.network(torch.from_numpy(x)),
    )
    for call in calls:
        with pytest.raises(EngineError, match=f"{engine}-fp32, small: this session is closed; open it again"):
            call(pictures(1))
    with pytest.raises(EngineError, match="this session is closed"):
        session(pictures(1)[:, :5])  # a size it never took is not what is wrong now
    with pytest.raises(EngineError, match="this session is closed"), session:
        session(pictures(1))


def test_a_session_that_runs_is_not_closed_under_it(engine_folder):
    with opened(engine_folder, "openvino") as session, ThreadPoolExecutor(1) as pool:
        wanted, honest = session(pictures(1)), session._masks

        def closed_meanwhile(x):
            with pytest.raises(EngineError, match="openvino-fp32, small: in use by another call"):
                pool.submit(session.close).result()
            return honest(x)

        session._masks = closed_meanwhile
        assert (session(pictures(1)) == wanted).all()


@pytest.mark.parametrize("engine", ENGINES)
def test_what_only_plans_do_is_said(engine_folder, engine):
    with opened(engine_folder, engine) as session:
        for call in (session.stream, session.run_device):
            with pytest.raises(Unavailable, match=rf"{engine}-fp32, small: {call.__name__} is for plans.*; call"):
                call(pictures(1))
