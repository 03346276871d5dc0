"""What besides its engines makes one run unlike another: the machine, the commit, the packages, and who was busy."""

from typing import Any

from segmenter_bench.machine import BUSY, busiest
from segmenter_bench.sections import commit_of, machine_name

Run = dict[str, Any]


def instructions(run: Run) -> set[str]:
    """The CPU's instructions that engines choose their code by."""
    return set((run["machine"].get("cpu") or {}).get("flags") or ())


def same_machine(mine: Run, theirs: Run) -> bool:
    """Whether milliseconds of two runs compare, as far as their machines' names and instructions tell."""
    return machine_name(mine["machine"]) == machine_name(theirs["machine"]) and instructions(mine) == instructions(
        theirs
    )


def differences(baseline: Run, candidate: Run) -> list[str]:
    """A line for each thing that differs, and for each run beside which other programs took the cores."""
    named = (("baseline", baseline), ("candidate", candidate))
    machines = [run["machine"] for _, run in named]
    facts: list[tuple[str, list[str]]] = [
        ("machine", [machine_name(machine) for machine in machines]),
        ("commit", [commit_of(machine, 7) for machine in machines]),
    ]
    versions = [machine.get("versions") or {} for machine in machines]
    facts += [(name, [one.get(name, "") for one in versions]) for name in sorted({*versions[0], *versions[1]})]
    lines = [f"{what}: {mine or 'none'}, now {theirs or 'none'}" for what, (mine, theirs) in facts if mine != theirs]
    if apart := instructions(baseline) ^ instructions(candidate):
        lines.append(f"instructions of one run alone: {', '.join(sorted(apart))}")
    shares = [(name, busiest(run["rows"])) for name, run in named]
    lines += [
        f"other programs took up to {share:.0%} of the cores in the {name}" for name, share in shares if share > BUSY
    ]
    return lines
