"""The console script: dispatch, help without torch, and every kind of failure in one line with its exit status."""

import ast
import errno
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

from segmenter.cli import COMMANDS, main, run
from segmenter.datasets import DATASETS, ON_DISK
from segmenter.errors import DataError
from segmenter.version import __version__


@dataclass(frozen=True)
class Options:
    """A command for these tests."""

    count: int
    """How many."""
    span: int | tuple[int, int, int] = 1
    """One or three."""
    name: str = "x"


def raising(error: BaseException) -> Callable[[Options], int]:
    def command(options: Options) -> int:
        raise error

    return command


def test_options_are_parsed_and_the_status_returned() -> None:
    seen = []
    assert run(seen.append, Options, ["--count", "3", "--name", "y"]) == 0
    assert seen == [Options(3, name="y")]
    assert run(lambda options: options.count, Options, ["--count", "5"]) == 5


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_the_module_the_readme_says(name: str) -> None:
    package, _, module = COMMANDS[name][0].rpartition(".")
    assert module == name.replace("-", "_").removeprefix("bench_")
    spec = find_spec(COMMANDS[name][0])
    assert spec is not None
    assert spec.origin is not None
    assert 'if __name__ == "__main__":\n    sys.exit(main())' in Path(spec.origin).read_text(encoding="utf-8")
    assert package in ("segmenter", "segmenter_engines", "segmenter_bench")


def test_commands_alone_import_the_command_line() -> None:
    commands = {module for module, _ in COMMANDS.values()} | {"segmenter.__main__"}
    for package in ("segmenter", "segmenter_engines", "segmenter_bench"):
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        root = Path(spec.origin).parent
        for file in root.rglob("*.py"):
            module = ".".join((package, *file.relative_to(root).with_suffix("").parts))
            if re.search(r"^\s*(from|import) segmenter\.cli\b", file.read_text(encoding="utf-8"), re.MULTILINE):
                assert module in commands, f"{module} imports segmenter.cli"


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["Missing", "--count INT"]),
        (["--count", "three"], ["--count", "'three'"]),
        (["--count", "3", "--nmae", "y"], ["--nmae", "did you mean --name STR?"]),
        (["--count"], ["--count"]),
        (["--count", "3", "more"], ["more"]),
        (["--count", "3", "--span", "1", "2"], ["--span 1 2: wanted INT|{INT INT INT};"]),
    ],
)
def test_bad_options_are_one_line_and_exit_with_2(
    argv: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(lambda options: 0, Options, argv) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err.startswith("error: ")
    assert printed.err.endswith("--help\n")
    assert printed.err.count("\n") == 1
    assert all(word in printed.err for word in words)
    assert "How many." not in printed.err
    assert "│" not in printed.err


def test_help_exits_with_0_and_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(lambda options: 1, Options, ["--help"]) == 0
    out = capsys.readouterr().out
    assert "How many." in out
    assert "A command for these tests." in out
    run(lambda options: 1, Options, ["--help"], description="Another text.")
    assert "Another text." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (DataError("a.png: is\nbroken; replace it"), 2, "error: a.png: is broken; replace it"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a.bin"),
            2,
            "error: runs/a.bin: No space left on device; make room, or choose another path",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            2,
            "error: /x: Permission denied; choose another path, or change its permissions",
        ),
        (
            OSError(errno.EIO, "Input/output error", "/x"),
            2,
            "error: /x: Input/output error; check the path, or choose another",
        ),
        (OSError("disk vanished"), 2, "error: disk vanished"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (
            ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime.capi"),
            2,
            "error: onnxruntime is not installed; run: pip install 'segmenter-trt[engines]'",
        ),
    ],
)
def test_failures_are_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raising(error), Options, ["--count", "1"]) == status
    assert capsys.readouterr().err == line + "\n"


def test_our_own_mistakes_keep_their_traceback() -> None:
    for error in (ModuleNotFoundError("No module named 'nonsense'", name="nonsense"), ZeroDivisionError()):
        with pytest.raises(type(error)):
            run(raising(error), Options, ["--count", "1"])


def test_what_the_package_needs_and_is_not_there_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("segmenter.cli.find_spec", lambda name: None)
    error = ModuleNotFoundError("No module named 'torch'", name="torch.nn")
    assert run(raising(error), Options, ["--count", "1"]) == 2
    wanted = "error: torch is not installed, which this command needs; run: pip install segmenter-trt\n"
    assert capsys.readouterr().err == wanted


def test_dispatch_passes_arguments_and_status(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("segmenter.train")
    module.main = lambda argv: len(argv)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "segmenter.train", module)
    assert main(["train", "--epochs", "3"]) == 2
    assert main(["train"]) == 0


def test_missing_extra_of_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def absent(name: str) -> ModuleType:
        raise ModuleNotFoundError("No module named 'openvino'", name="openvino")

    monkeypatch.setattr("segmenter.cli.import_module", absent)
    assert main(["verify"]) == 2
    assert "pip install 'segmenter-trt[engines]'" in capsys.readouterr().err


def test_help_version_and_unknown_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"segmenter {__version__}\n"
    assert main([]) == 2
    assert main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err
    assert main(["xyzzy"]) == 2
    assert "`segmenter --help` lists the commands" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([name, "--help"] for name in ("evaluate", "predict", "check-data", "attention", "class-map", "browse")),
    ],
)
def test_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    code = f"import sys; from segmenter.cli import main; main({arguments}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "usage: segmenter" in done.stdout


@pytest.mark.parametrize("name", ["train", "evaluate", "pretrained", "check-data", "prepare-data", "bench-data"])
def test_help_names_every_dataset(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    names = ON_DISK if name in ("check-data", "prepare-data") else DATASETS
    assert "{" + ",".join(names) + "}" in re.sub(r"[\s│]", "", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["evaluate", "sign", "class-map"])
def test_help_is_no_wider_than_the_terminal(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert main([name, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 72] == []
    assert not any(not (one or two) for one, two in pairwise(lines))  # one empty line between paragraphs


def test_help_of_an_option_breaks_its_lines_at_sentences_alone() -> None:
    # tyro keeps the line breaks of a field's docstring
    root, odd = Path(__file__).resolve().parents[1], []
    paths = [path for part in ("segmenter", "bench", "engines") for path in sorted((root / part).rglob("*.py"))]
    assert paths
    for path in paths:
        classes = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ClassDef)]
        for field, told in (pair for one in classes for pair in pairwise(one.body)):
            if isinstance(field, ast.AnnAssign) and isinstance(told, ast.Expr):
                lines = ast.literal_eval(told.value).split("\n")
                odd += [f"{path}:{told.lineno}: {line}" for line in lines[:-1] if not line.endswith(".")]
    assert odd == []


@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [("--help", ""), ("recipes", ""), ("prepare-data camvid", "1"), ("nothing", "")]
)
def test_output_nobody_reads_ends_it_in_silence(arguments: str, unbuffered: str, tmp_path: Path) -> None:
    """As `segmenter recipes | head -1` may; `nothing` speaks on stderr, which goes into the pipe too."""
    reader, writer = os.pipe()
    os.close(reader)
    errors = tmp_path / "errors"
    with errors.open("w") as file:
        told = {"stdout": writer, "stderr": writer if arguments == "nothing" else file}
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        command = [sys.executable, "-m", "segmenter", *arguments.split()]
        done = subprocess.run(command, **told, env=environment, timeout=60)
    os.close(writer)
    assert (done.returncode, errors.read_text()) == (141, "")


def test_a_full_disk_is_told_once() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "segmenter", "recipes"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (2, "error: [Errno 28] No space left on device\n")


def test_a_pipe_to_another_process_that_breaks_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(raising(BrokenPipeError(errno.EPIPE, "Broken pipe")), Options, ["--count", "1"]) == 2
    assert capfd.readouterr().err == "error: [Errno 32] Broken pipe\n"


def test_module_runs_as_a_script() -> None:
    done = subprocess.run([sys.executable, "-m", "segmenter", "nothing"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no command 'nothing'")
    done = subprocess.run(
        [sys.executable, "-m", "segmenter.check_data", "--help"], capture_output=True, text=True, timeout=60
    )
    assert "usage: python -m segmenter.check_data" in done.stdout
