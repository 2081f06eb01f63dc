"""What the benchmarks of one evaluation found, before it becomes a report."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from pixart_core.evaluation.sample_set import SampleSet


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the detectors say about one sample: the metrics it misses, and what it shows."""

    wrong: tuple[str, ...]
    seen: str


@dataclasses.dataclass
class Outcome:
    """Results as they come in.

    Attributes:
        metrics: {sample set: {benchmark or protocol id: result}}; what scripts read.
        verdicts: of each sample, for the sets that bench shapes has scored.
        paired: differences between two sample sets.
        values: {protocol id: {sample set: {file of a picture: its score}}}; pairs are made of them.
        prompts: {sample set: {protocol id: [{"prompt", "score", "null", "images", "reasons"}]}}.
        missing: {sample set: what compbench could not score, and why}.
        reference: what distances compare with, as the report names it.
    """

    metrics: dict[str, dict[str, Any]]
    verdicts: dict[str, list[Verdict]] = dataclasses.field(default_factory=dict)
    paired: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    values: dict[str, dict[str, dict[str, float]]] = dataclasses.field(default_factory=dict)
    prompts: dict[str, dict[str, list[dict[str, Any]]]] = dataclasses.field(default_factory=dict)
    missing: dict[str, list[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    reference: dict[str, Any] | None = None

    def add(self, results: Mapping[str, Mapping[str, Any]], protocol: str) -> None:
        """Enter the result of each sample set under `protocol`."""
        for name, result in results.items():
            self.metrics[name][protocol] = dict(result)

    def add_compbench(self, samples: SampleSet, result: Mapping[str, Any]) -> None:
        """Enter what `score_compbench` found; its prompts go to the galleries."""
        categories = {
            name: {key: value for key, value in category.items() if key != "prompts"}
            for name, category in result["categories"].items()
        }
        self.metrics[samples.name]["compbench"] = {"categories": categories}
        self.missing[samples.name] = [dict(entry) for entry in result["missing"]]
        for name, category in result["categories"].items():
            self.add_prompts(samples, f"{category['protocol']} {name}", category.get("prompts", []))

    def add_prompts(self, samples: SampleSet, protocol: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Enter the scores of each prompt and its pictures."""
        self.prompts.setdefault(samples.name, {})[protocol] = [dict(row) for row in rows]
        self.values.setdefault(protocol, {})[samples.name] = {
            image["file"]: image["score"] for row in rows for image in row["images"]
        }

    def mark_partial(self, sets: Sequence[SampleSet]) -> None:
        """Say in every result that it is of a part of the samples, where it is."""
        for samples in sets:
            if samples.partial:
                for result in self.metrics[samples.name].values():
                    result["partial"] = {"scored": len(samples.samples), "of": samples.whole}
        partial = {samples.name for samples in sets if samples.partial}
        for pair in self.paired:
            if partial & {pair["a"], pair["b"]}:
                pair["partial"] = True
