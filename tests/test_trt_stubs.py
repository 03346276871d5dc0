"""The typed stubs of segmenter_trt say what the compiled module has: every name, parameter and default."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

segmenter_trt = pytest.importorskip("segmenter_trt", reason="segmenter_trt is not compiled; run pip install .")
from segmenter_trt import _native  # noqa: E402 - after the skip

STUBS = ast.parse((Path(__file__).resolve().parents[1] / "csrc" / "segmenter_trt" / "_native.pyi").read_text())

Parameters = list[tuple[str, str | None]]  # name, or a bare star, and default


def public(names: Any) -> set[str]:
    return {name for name in names if not name.startswith("_") or name == "__version__"}


def stubbed(body: list[ast.stmt]) -> dict[str, list[ast.FunctionDef]]:
    """Functions by name; several of one that is overloaded."""
    functions: dict[str, list[ast.FunctionDef]] = {}
    for node in body:
        if isinstance(node, ast.FunctionDef):
            functions.setdefault(node.name, []).append(node)
    return functions


def parameters_of_stub(function: ast.FunctionDef) -> Parameters:
    arguments = function.args
    plain = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults)) + list(arguments.defaults)
    found: Parameters = [
        (name, default and ast.unparse(default)) for name, default in zip(plain, defaults, strict=True)
    ]
    if arguments.kwonlyargs:
        found.append(("*", None))
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            found.append((argument.arg, default and ast.unparse(default)))
    return [(name, default) for name, default in found if name != "self"]


def parameters_of_compiled(function: Any) -> Parameters:
    """From the first line of the docstring, which pybind11 writes as Python would."""
    line = re.match(r"\w+(\(.*\)) -> ", function.__doc__)
    assert line, function.__doc__
    return [(name, default) for name, default in parameters_of_stub_text(line.group(1)) if name != "self"]


def parameters_of_stub_text(text: str) -> Parameters:
    (function,) = ast.parse(f"def f{text}: ...").body
    assert isinstance(function, ast.FunctionDef)
    return parameters_of_stub(function)


def classes() -> dict[str, ast.ClassDef]:
    return {node.name: node for node in STUBS.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"}


def test_names_are_the_modules() -> None:
    names = {
        node.target.id for node in STUBS.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }
    assert public(names | set(stubbed(STUBS.body)) | set(classes())) == public(vars(_native))
    assert public(vars(_native)) <= set(segmenter_trt.__all__) <= set(vars(segmenter_trt))


@pytest.mark.parametrize("name", sorted(public(stubbed(STUBS.body))))
def test_functions_have_the_parameters(name: str) -> None:
    for stub in stubbed(STUBS.body)[name]:
        assert parameters_of_stub(stub) == parameters_of_compiled(getattr(_native, name))


@pytest.mark.parametrize("name", sorted(classes()))
def test_classes_have_the_members(name: str) -> None:
    stub, compiled = classes()[name], getattr(_native, name)
    assert [ast.unparse(base) for base in stub.bases] == [
        base.__name__ for base in compiled.__bases__ if base.__name__ not in ("object", "pybind11_object")
    ]
    functions = stubbed(stub.body)
    if issubclass(compiled, Exception):
        return
    assert public(functions) == public(vars(compiled))
    for member, stubs in functions.items():
        value = inspect.getattr_static(compiled, member)
        for function in stubs:
            is_property = any(ast.unparse(decorator) == "property" for decorator in function.decorator_list)
            assert is_property == isinstance(value, property)
            if not is_property:
                given = parameters_of_stub(function)
                compiled_parameters = parameters_of_compiled(getattr(compiled, member))
                assert [name for name, _ in given] == [name for name, _ in compiled_parameters]
                # an overload without a default is of the calls that pass one
                known = dict(compiled_parameters)
                assert all(default in (None, known[name]) for name, default in given)
                if len(stubs) == 1:
                    assert given == compiled_parameters


def test_everything_public_is_explained() -> None:
    for name in public(vars(_native)) - {"__version__"}:
        value = getattr(_native, name)
        assert value.__doc__, name
        if inspect.isclass(value) and not issubclass(value, Exception):
            for member in public(vars(value)):
                documented = getattr(value, member).__doc__
                assert "\n" in documented.strip() or isinstance(vars(value)[member], property), f"{name}.{member}"
