"""The recipes on a page, and one of them as commands: `python -m segmenter.recipes [NAME]`."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from segmenter.cli import run
from segmenter.recipe import Recipe, read_recipe, recipe_names


@dataclass(frozen=True)
class Options:
    """List the recipes, one a result row, or show one as the commands that run it.

    To train as one says: `segmenter train --recipe NAME`; options given beside it win.
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """A recipe's name, or the path of a YAML file; left out: list all."""
    data: str = "DATA"
    """The dataset's folder, for the commands."""
    weights: str | None = None
    """The file of weights, for the commands; default its published name."""
    out: str | None = None
    """Folder of the run, for the commands; default runs/NAME."""


def recipes(options: Options) -> int:
    if options.name is None:
        Console().print(recipes_table([read_recipe(name) for name in recipe_names()]))
        print(
            "`segmenter recipes NAME` shows one as commands; mIoU in percent, MS with several"
            " scales; what is not published is left out"
        )
        return 0
    recipe = read_recipe(options.name)
    weights = options.weights or (recipe.weights or {}).get("file", "WEIGHTS")
    print("\n".join(described(recipe)))
    for name, arguments in recipe.commands(weights, options.data, options.out or f"runs/{recipe.name}").items():
        print(f"\n# {name}\nsegmenter {shlex.join(arguments)}")
    return 0


def recipes_table(rows: Sequence[Recipe]) -> Table:
    """One row a recipe: what it should reach, what it takes, and whether it was run."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    for heading in ("mIoU", "MS", "MAE", "GPU h"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("status", overflow="fold")
    for recipe in rows:
        expected = recipe.expected or {}
        figures = [_text(expected.get(key)) for key in ("miou", "miou_multi_scale", "mae")]
        hours = _text((recipe.gpu_hours or {}).get("hours"))
        table.add_row(recipe.name, *figures, hours, status(recipe))
    return table


def status(recipe: Recipe) -> str:
    """Reproduced, with the figures and their file, or why not."""
    if why := recipe.status.get("not_run"):
        return f"not run here: {why}"
    figures = [
        f"{label} {recipe.status[key]}"
        for key, label in (("miou", "mIoU"), ("miou_multi_scale", "multi-scale"))
        if key in recipe.status
    ]
    return f"reproduced: {', '.join(figures)} ({recipe.status['file']})"


def described(recipe: Recipe) -> list[str]:
    """A recipe's facts, a line each."""
    facts: dict[str, Any] = {
        "row": recipe.row,
        "dataset": recipe.dataset,
        "network": f"{recipe.variant or 'what the weights are'}, {recipe.decoder} decoder",
    }
    for part in ("weights", "expected", "gpu_hours"):
        values = getattr(recipe, part)
        if values is not None:
            facts[part.replace("_", " ")] = ", ".join(
                str(value) if key in ("file", "url") else f"{key.replace('_', ' ')} {value}"
                for key, value in values.items()
            )
    facts |= {"status": status(recipe)} | ({"notes": " ".join(recipe.notes.split())} if recipe.notes else {})
    return [recipe.name, *(f"  {name}: {value}" for name, value in facts.items())]


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def main(argv: Sequence[str] | None = None) -> int:
    return run(recipes, Options, argv)


if __name__ == "__main__":
    sys.exit(main())
