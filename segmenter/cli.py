"""The `segmenter` console script, and what every command shares: options from a dataclass, errors in one line.

Commands are imported by name and only when asked for, so that `segmenter --help` needs neither torch nor any extra.
"""

import difflib
import errno
import inspect
import io
import os
import re
import select
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from importlib import import_module
from importlib.util import find_spec
from typing import TextIO, TypeVar

from segmenter.errors import FAILED, SegmenterError
from segmenter.version import __version__

Options = TypeVar("Options")

COMMANDS = {
    "train": ("segmenter.train", "train a network on labelled images"),
    "probe": ("segmenter.probe", "fit a decoder on a frozen encoder: the quick start before fine-tuning"),
    "evaluate": ("segmenter.evaluate", "mIoU and accuracy of a checkpoint on a dataset"),
    "predict": ("segmenter.predict", "label images: class maps and overlays"),
    "attention": ("segmenter.attention", "where a token looks: attention of every layer and head over an image"),
    "class-map": (
        "segmenter.class_map",
        "which classes are alike to a network: their embeddings in the plane",
    ),
    "browse": ("segmenter.browse", "one HTML page of images, labels, predictions and mistakes, worst first"),
    "pretrained": ("segmenter.pretrained", "import official checkpoints and ViT weights"),
    "export-official": ("segmenter.export_official", "checkpoint to the official checkpoint.pth and variant.yml"),
    "recipes": ("segmenter.recipes", "rows of results, the paper's and ours: what each takes and reaches, and how"),
    "check-data": ("segmenter.check_data", "say what is wrong with a dataset folder"),
    "prepare-data": ("segmenter.prepare_data", "where a dataset is had, what is missing of it, and its conversion"),
    "show-data": ("segmenter.show_data", "draw augmented training samples with their labels"),
    "export": ("segmenter_engines.export", "checkpoint to ONNX"),
    "quantize": ("segmenter_engines.quantize", "ONNX to int8 or fp8 ONNX, from calibration images"),
    "sensitivity": ("segmenter_engines.sensitivity", "what each layer costs when it alone is quantised"),
    "qat": ("segmenter_engines.qat", "fine-tune a checkpoint under the rounding of a quantised graph"),
    "build": ("segmenter_engines.build", "ONNX to a TensorRT plan"),
    "layers": ("segmenter_engines.layers", "what a plan's layers are: fused, converted, in which precision"),
    "verify": ("segmenter_engines.verify", "compare an engine's labels with PyTorch's"),
    "sign": ("segmenter_engines.sign", "sign an engine's manifest with an Ed25519 key"),
    "label": (
        "segmenter_engines.label",
        "label a folder of pictures with an engine, a share on each machine",
    ),
    "pipeline": ("segmenter_engines.pipeline", "checkpoint to every engine: export, quantize, build, verify"),
    "bench-throughput": ("segmenter_bench.throughput", "images per second of each engine"),
    "bench-miou": ("segmenter_bench.miou", "mIoU of each engine"),
    "bench-kernels": ("segmenter_bench.kernels", "each Triton kernel against its rivals"),
    "bench-eight-bits": ("segmenter_bench.eight_bits", "what 8 bits on a GPU cost a checkpoint, judged without one"),
    "bench-routines": ("segmenter_bench.routines", "the compiled routines against PyTorch and Pillow"),
    "bench-native": ("segmenter_bench.native", "the C++ program against the Python session"),
    "bench-stages": ("segmenter_bench.stages", "where the network's time goes, stage by stage"),
    "bench-data": ("segmenter_bench.data", "images per second of loading and augmentation, stage by stage"),
    "bench-train-step": ("segmenter_bench.train_step", "what an update of training costs beside a bare PyTorch loop"),
    "bench-compare": ("segmenter_bench.compare", "which engines became slower from one speed run to another"),
    "bench-guard": ("segmenter_bench.guard", "a short speed run against the committed one: CI's guard"),
    "bench-repeat": ("segmenter_bench.repeat", "everything twice: how far each ratio moves between two runs"),
    "report": ("segmenter_bench.report", "one HTML page from the benchmark results"),
}

# what the package itself needs, for who installed it without
_NEEDED = ("numpy", "torch", "safetensors", "PIL", "yaml", "tyro", "rich")
# which extra of the package brings a module; anything else missing is no user's mistake
_EXTRAS = {
    "tensorboard": "train",
    "scipy": "data",
    "wandb": "wandb",
    "ray": "ray",
    "onnx": "engines",
    "onnxruntime": "engines",
    "onnxscript": "engines",
    "onnxslim": "engines",
    "openvino": "engines",
    "pynvml": "gpu",
    "triton": "gpu",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "pycuda": "pycuda",
    "cryptography": "signing",
    "cuda": "cuda-python",
}

_NEXT_STEPS = {
    errno.ENOSPC: "make room, or choose another path",
    errno.EACCES: "choose another path, or change its permissions",
    errno.EISDIR: "name a file, such as one in it",
    errno.EEXIST: "move it away, or choose another path",
    errno.ENOTDIR: "it is a file; choose another path",
}

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
UNREAD = 141  # 128 + SIGPIPE, likewise


def run(
    command: Callable[[Options], int | None],
    options_class: type[Options],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    expand: Callable[[list[str]], list[str]] = list,
) -> int:
    """Parse `argv` (the process's own when None) into `options_class`, call `command`, and return its exit status.

    description: text above the list of options; the class's docstring when None. expand: what makes arguments of those
    given, such as those of a recipe they name. A mistake in the options, an error the project raises on purpose, a
    missing extra, and a file system's refusal give one line on stderr and 2; Ctrl-C 130; output that nobody reads to
    its end, as in `segmenter recipes | head -1`, 141 in silence.
    """

    def parse_and_call() -> int:
        import tyro

        arguments = expand(sys.argv[1:] if argv is None else list(argv))
        program, said = _program(command), io.StringIO()
        told = _hanging(description or options_class.__doc__ or "")
        try:
            with redirect_stderr(said):
                options = tyro.cli(options_class, prog=program, args=arguments, description=told)
        except SystemExit as stop:
            if (status := _status(stop)) == 0:
                return 0
            return _fail(f"{_mistake(said.getvalue())}; see {program or 'the command with'} --help", status)
        sys.stderr.write(said.getvalue())
        return command(options) or 0

    return _guarded(parse_and_call)


def main(argv: Sequence[str] | None = None) -> int:
    """`segmenter COMMAND ...`; returns the command's exit status."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    return _guarded(lambda: _dispatch(arguments))


def share_cores() -> None:
    """Let threads that wait give their core away; to be called before anything loads torch.

    OpenMP reads this once, as PyTorch is loaded. Threads that wait by spinning take the core from the processes that
    load images, and from anything else at work: with one busy neighbour on two cores training ran at two fifths.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _dispatch(arguments: Sequence[str]) -> int:
    name = arguments[0] if arguments else ""
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"segmenter {__version__}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "`segmenter --help` lists the commands"
        print(f"error: no command {name!r}; {hint}" if name else _help(), file=sys.stderr)
        return FAILED
    return int(import_module(COMMANDS[name][0]).main(arguments[1:]))


def _guarded(function: Callable[[], int]) -> int:
    """Call `function`, turning what a user can cause into an exit status, and one line on stderr where that is read."""
    try:
        return _told(function)
    except BrokenPipeError:
        _silence()
        return UNREAD
    except SystemExit as stop:
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        return UNREAD  # rich has seen it first


def _silence() -> None:
    """Turn the standard streams that nobody reads any more to nowhere: Python writes what they hold when it ends."""
    for stream in (sys.stdout, sys.stderr):
        if _unread(stream):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _unread(stream: TextIO) -> bool:
    """Whether the reader of a standard stream has gone."""
    try:
        poll = select.poll()
        poll.register(stream, 0)
    except (AttributeError, OSError, TypeError, ValueError):
        # no such call on this system, or no file behind the stream
        return False
    return bool(poll.poll(0))


def _told(function: Callable[[], int]) -> int:
    """Call `function`, turning what a user can cause into one line on stderr and an exit status."""
    try:
        status = function()
        if not status:  # what cannot be written when Python ends is told by a traceback; an error has been told
            print(end="", flush=True)
        return status
    except SegmenterError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if (advice := _how_to_install(error.name or "")) is None:
            raise
        return _fail(advice)
    except BrokenPipeError as error:
        # or a pipe to another process has broken, such as one that loads images
        if _unread(sys.stdout) or _unread(sys.stderr):
            raise
        return _fail(str(error))
    except OSError as error:
        if not (error.filename and error.strerror):
            return _fail(str(error))
        next_step = _NEXT_STEPS.get(error.errno or 0, "check the path, or choose another")
        return _fail(f"{error.filename}: {error.strerror}; {next_step}")
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)


def _hanging(description: str) -> str:
    """Paragraphs in lines as long as the terminal's, indented but for the first of each.

    tyro breaks no line of a description, and joins those that begin with a letter.
    """
    width = shutil.get_terminal_size().columns
    form = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n\n".join(map(form.fill, re.split(r"\n\s*\n", inspect.cleandoc(description))))


def _fail(message: str, status: int = FAILED) -> int:
    print("error:", " ".join(message.split()), file=sys.stderr)
    return status


def _mistake(box: str) -> str:
    """What tyro's box says of a mistake in the options, in one line: the message, and the option that may be meant.

    Within the box, rules part the message from the advice, and a help text stands deeper than the option it is of.
    Where stdout is not UTF-8 the rules are hyphens, and one more of them parts the title from the message.
    """
    sections: list[list[str]] = [[]]
    for line in box.splitlines():
        text = line[2:].removesuffix("│").rstrip()
        if text and not text.strip("─-"):
            sections.append([])
        elif text and not line.startswith(("╭", "╰")) and not text.startswith(" " * 5):
            sections[-1].append(text.strip())
    message, *advice = sections if "╭" in box else sections[1:] or sections
    near = [words for first, *words in advice if first.startswith(("Perhaps", "Similar")) and words]
    # tyro leaves marks of its own for bold text in some messages
    mistake = re.sub(r"\[/?bold\]", "", " ".join(message)).rstrip(".") or "the options cannot be read"
    if choice := re.match(r"Error parsing (\S+): no type matching (.+) could be instantiated from \[(.*?)\]", mistake):
        # of a value or several that may be left out; what follows is in the words of Python's types
        option, wanted, given = choice.groups()
        wanted = re.sub(r"^\{([^{}]*)\}$", r"\1", wanted.replace("{None}|", ""))
        values = " ".join(re.findall("'(.*?)'", given))
        mistake = f"{option} {values}: wanted {wanted}"
    return f"{mistake}; did you mean {near[0][0]}?" if near else mistake


def _how_to_install(module: str) -> str | None:
    top = module.partition(".")[0]
    if top in _EXTRAS:
        return f"{top} is not installed; run: pip install 'segmenter-trt[{_EXTRAS[top]}]'"
    if top in _NEEDED and find_spec(top) is None:
        return f"{top} is not installed, which this command needs; run: pip install segmenter-trt"
    if any(top == home.partition(".")[0] for home, _ in COMMANDS.values()) and find_spec(top) is None:
        return f"{top} is not part of this installation; install segmenter-trt whole: pip install segmenter-trt"
    return None


def _program(command: Callable[..., object]) -> str | None:
    """How the running command was called, for its help: `segmenter train`, or `python -m segmenter.train`."""
    for name, (module, _) in COMMANDS.items():
        if command.__module__ == module:
            return f"segmenter {name}"
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec is not None else None


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join(
        (
            "usage: segmenter COMMAND [OPTIONS]",
            "",
            "Segmenter from labelled images to the fastest engine, with the mIoU it costs.",
            "",
            "commands:",
            *lines,
            "",
            "`segmenter COMMAND --help` explains each; `segmenter --version` prints the version.",
        )
    )


def _status(stop: SystemExit) -> int:
    return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else FAILED
