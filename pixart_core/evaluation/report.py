"""`report.html`, one self-contained file without scripts, `report.md` and `report.json`.

Equal inputs give equal bytes.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup
from PIL import Image

from pixart_core.artifacts.pages import page_environment
from pixart_core.artifacts.publish import write_json, write_text
from pixart_core.artifacts.samples import SampleRecord
from pixart_core.evaluation.charts import loss_chart
from pixart_core.evaluation.guidance_curve import curve_chart
from pixart_core.evaluation.report_data import EXPLANATIONS
from pixart_core.evaluation.report_markdown import markdown
from pixart_core.evaluation.report_sections import clip_tables, compbench_tables, distance_tables
from pixart_core.evaluation.sample_set import SampleSet

TEMPLATES = Path(__file__).parent / "templates"
SHOWN = 24  # samples of a set that are seen at once
EMBEDDED = 120  # samples of a set that are in the file
MAX_SIDE = 320  # pixels; larger pictures are embedded smaller
CRISP_BELOW = 160  # pixels; smaller pictures are enlarged without smoothing


def write_report(report: Mapping[str, Any], sets: Sequence[SampleSet], output: Path) -> None:
    """Write `report` (see `build_report`) and its page into `output`.

    Raises:
        UserError: a picture is gone.
        PixartError: the folder cannot be written.
    """
    page = render_page(report, sets)
    write_json(output / "report.json", report)
    write_text(output / "report.md", markdown(report))
    write_text(output / "report.html", page)


def render_page(report: Mapping[str, Any], sets: Sequence[SampleSet]) -> str:
    """The page as text."""
    environment = page_environment(TEMPLATES)
    environment.filters |= {"decimals": _decimals, "duration": _duration, "yaml": _yaml, "percent": _percent}
    environment.filters["interval"] = _interval
    return environment.get_template("report.html.j2").render(
        report=report,
        explanations=EXPLANATIONS,
        charts={
            name: Markup(loss_chart(run["curve"], "Loss over training steps"))
            for name, run in report["runs"].items()
            if run["curve"]
        },
        grids={samples.name: _grid(samples, report) for samples in sets},
        distances=distance_tables(report["metrics"]),
        clips=clip_tables(report["metrics"]),
        compbench=compbench_tables(report["metrics"]),
        curves=[curve | {"chart": Markup(curve_chart(curve))} for curve in report["curves"]],
        galleries=_gallery_pictures(report, sets),
        shown=SHOWN,
    )


def _grid(samples: SampleSet, report: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = report["sample_sets"][samples.name]["samples"]
    return [
        row | _picture(samples, sample) for row, sample in zip(rows[:EMBEDDED], samples.samples, strict=False)
    ]


def _picture(samples: SampleSet, sample: SampleRecord) -> dict[str, Any]:
    crisp = max(sample.height, sample.width) < CRISP_BELOW
    return {"image": picture_url(samples.picture(sample)), "crisp": crisp}


def picture_url(image: Image.Image) -> str:
    """A picture as a data URL: PNG when small, else a JPEG of at most `MAX_SIDE`."""
    buffer = io.BytesIO()
    if max(image.size) <= MAX_SIDE:
        image.save(buffer, "png", optimize=True)
        kind = "png"
    else:
        image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "jpeg", quality=88)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _gallery_pictures(report: Mapping[str, Any], sets: Sequence[SampleSet]) -> dict[str, Any]:
    """The report's galleries, each entry with its picture."""
    found: dict[str, Any] = {}
    for samples in sets:
        by_file = {sample.file: sample for sample in samples.samples}
        for protocol, ends in report["galleries"].get(samples.name, {}).items():
            found.setdefault(samples.name, {})[protocol] = {
                end: [entry | _picture(samples, by_file[entry["file"]]) for entry in entries]
                for end, entries in ends.items()
            }
    return found


def _decimals(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _interval(bounds: Sequence[float] | None, digits: int = 3) -> str:
    return "–" if bounds is None else " to ".join(_decimals(bound, digits) for bound in bounds)


def _percent(value: float) -> str:
    """For style attributes: 0..1 as a CSS percentage, kept inside its track."""
    return f"{100 * min(max(value, 0.0), 1.0):.2f}%"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip()
