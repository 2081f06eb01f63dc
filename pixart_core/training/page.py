"""`training.html`: how a run goes, in one file that needs no network and renews itself."""

import base64
import hashlib
import os
import platform
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from pixart_core import __version__
from pixart_core.artifacts.checkpoint import LOG
from pixart_core.artifacts.publish import write_text
from pixart_core.charts import binned, short
from pixart_core.training.log import read_rows
from pixart_core.training.pace import duration
from pixart_core.training.page_charts import CURVES, curve_charts
from pixart_core.training.page_images import newest_images, strips
from pixart_core.training.run import Run
from pixart_core.training.step import StepStats
from pixart_core.training.validation import VALIDATION, ValidationLoss
from pixart_core.training.validation_images import ValidationImages

PAGE = "training.html"
TEMPLATES = Path(__file__).parent / "templates"
REFRESH = 15  # seconds between two looks of a browser
PAUSE = 10.0  # seconds between two pages, at least
KEPT = 4000  # points of a curve
SHARE = 0.01  # of the time that goes into pages, at most


class Page:
    """Watcher: keeps the page up to date, not more often than every `PAUSE` seconds."""

    def __init__(self, validation: ValidationLoss | None, images: ValidationImages | None) -> None:
        self.validation = validation
        self.images = images
        self.curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self.row: Mapping[str, Any] = {}
        self.news = False
        self.due = monotonic() + PAUSE

    def begin(self, run: Run) -> None:
        """Take up what an earlier sitting logged."""
        if run.accelerator.is_main_process:
            for row in read_rows(run.output / LOG):
                self._add(row)

    def after_step(self, run: Run, stats: StepStats, row: Mapping[str, Any] | None) -> None:
        """Write the page, if there is something new and the last one is old enough."""
        if not run.accelerator.is_main_process:
            return
        if row is not None:
            self._add(row)
        self.news |= row is not None
        self.news |= self.validation is not None and bool(self.validation.rows)
        self.news |= self.images is not None and self.images.latest is not None
        if self.news and monotonic() >= self.due:
            self.write(run, "running")

    def end(self, run: Run) -> None:
        """The last page."""
        if run.accelerator.is_main_process:
            self.write(run, "finished")

    def write(self, run: Run, state: str) -> None:
        """Publish the page; a failure waits for the next time, too."""
        begin = monotonic()
        try:
            write_text(run.output / PAGE, self._render(run, state))
            self.news = False
        finally:
            now = monotonic()
            self.due = now + max(PAUSE, (now - begin) / SHARE)

    def _add(self, row: Mapping[str, Any]) -> None:
        self.row = row
        values = {**row, **row.get("pace", {})}
        for name in CURVES:
            if name in values:
                points = self.curves[name]
                points.append((row["step"], values[name]))
                if len(points) > KEPT:  # a million rows take no more memory: two neighbours become their mean
                    points[:] = binned(points, KEPT // 2)

    def _render(self, run: Run, state: str) -> str:
        from markupsafe import Markup  # only who writes a page waits for it

        from pixart_core.artifacts.pages import page_environment

        environment = page_environment(TEMPLATES)
        validated = read_rows(run.output / VALIDATION)
        charts = curve_charts(run.step, self.curves, validated)
        script = (TEMPLATES / "refresh.js").read_text(encoding="utf-8")
        counters, pace = run.counters, self.row.get("pace", {})
        left = duration(pace["eta_seconds"]) if state == "running" and pace.get("eta_seconds") else ""
        return environment.get_template("training.html.j2").render(
            name="/".join(run.output.resolve().parts[-2:]),
            version=__version__,
            state=state,
            step=counters.step,
            steps=run.step.max_train_steps,
            percent=f"{100 * counters.step // run.step.max_train_steps}%",
            left=left,
            when=time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            written=int(time.time()),
            refresh=REFRESH,
            tiles=_tiles(run, self.row, validated),
            charts=[chart | {"svg": Markup(chart["svg"])} for chart in charts],
            newest=newest_images(run.output),
            strips=strips(run.output),
            validated=bool(validated),
            machine=_machine(run.accelerator),
            recipe=yaml.safe_dump(run.step.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
            script=Markup(script),
            script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )


def _tiles(run: Run, row: Mapping[str, Any], validated: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The newest figures, each with a word on what it is."""
    pace = row.get("pace", {})
    tiles = []
    if row:
        tiles.append(("Loss", f"{row['loss']:.4f}", f"mean of the last {run.step.log_every} steps"))
    averaged = [entry for entry in validated if entry["weights"] == "ema"]
    if averaged:
        newest = averaged[-1]
        tiles.append(
            ("Validation loss", f"{newest['loss']:.4f}", f"averaged weights, step {newest['step']:,}")
        )
    if "images_per_second" in pace:
        tiles.append(
            ("Images/s", short(pace["images_per_second"]), f"{pace['data_wait']:.0%} waiting for data")
        )
    if "mfu" in pace:
        tiles.append(("MFU", f"{pace['mfu']:.1%}", f"{pace['tflops']:,.4g} TFLOP/s a GPU"))
    elif "tflops" in pace:
        tiles.append(("TFLOP/s", f"{pace['tflops']:.3g}", "of the model, on each device"))
    images = run.counters.step * run.step.global_batch_size
    epochs = images / max(1, sum(run.store.buckets.values()))
    tiles.append(("Images seen", short(images), f"{epochs:,.3g} times the data"))
    tiles.append(("Time", duration(run.counters.seconds), "in training, all sittings"))
    if row.get("lost_steps"):
        tiles.append(("Lost steps", short(row["lost_steps"]), "not finite: see failures.jsonl"))
    if "usd" in pace:
        tiles.append(("Cost", f"{pace['usd']:,.2f} USD", f"at {run.step.price:g} USD an hour"))
    return [dict(zip(("name", "figure", "note"), tile, strict=True)) for tile in tiles]


def _machine(accelerator: Accelerator) -> dict[str, str]:
    """Where it runs, for who comes back in a year."""
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    else:
        threads = torch.get_num_threads()
        device = f"CPU ({platform.machine()}), {threads} of {os.cpu_count()} threads"
    return {
        "Device": device,
        "Processes": str(accelerator.num_processes),
        "Software": f"pixart {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "Host": platform.node() or "unknown",
    }
