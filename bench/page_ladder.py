"""The page's ablation ladder: a bar a rung, and beside it what its one change gained."""

from html import escape

from segmenter_bench.ladder import Step, climbs, unmeasured
from segmenter_bench.origins import linked
from segmenter_bench.page_figures import family
from segmenter_bench.page_tables import missing
from segmenter_bench.sections import Section
from segmenter_bench.sheets import quantity

HINT = (
    "One change a rung, all measured in turns in one run; a gain is over the rung before or the one named, the median"
    " of the rounds' own ratios with their quartiles, or of images/s where there were too few rounds. Bars are times"
    " the first rung."
)


def ladders(section: Section) -> str:
    """HTML of every ladder with rungs to show, and the rungs that were not measured with the reason; or nothing."""
    found = climbs(section)
    if not found:
        return ""
    figures = "".join(_figure(name, steps) for name, steps in found.items())
    absent = unmeasured(section)
    told = f'<p class="hint">Rungs not measured here:</p>{missing(absent)}' if absent else ""
    return f'<p class="hint">{HINT}</p><div class="figures two">{figures}</div>{told}'


def _figure(name: str, steps: list[Step]) -> str:
    longest = max(step.total or 0.0 for step in steps)
    rows = "".join(_rung(step, longest) for step in steps if step.row is not None)
    return f'<figure><h4>{escape(name[0].upper() + name[1:])}</h4><ol class="climb">{rows}</ol></figure>'


def _rung(step: Step, longest: float) -> str:
    assert step.row is not None
    assert step.total is not None
    speed = linked(step.row, f"{quantity(step.row['timing']['images_per_s'], 3)} img/s")
    gain = ""
    if step.gain is not None:
        spread = f' <span class="spread">{step.spread[0]:.2f} to {step.spread[1]:.2f}</span>' if step.spread else ""
        over = f' <span class="spread">{escape(step.apart)}</span>' if step.apart else ""
        gain = f'<span class="gain">{linked(step.row, f"x {step.gain:.2f}")}{over}{spread}</span>'
    bar = f'<span class="fill {family(step.rung.engine)}" style="width:{100 * step.total / longest:.1f}%"></span>'
    return (
        f'<li><span class="change">{escape(step.rung.change)}</span>{gain}<span class="track">{bar}</span>'
        f'<span class="under"><code>{escape(step.rung.engine)}</code> {speed}</span></li>'
    )
