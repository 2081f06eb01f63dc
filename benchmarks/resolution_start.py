"""What a change of resolution costs before any training: the loss of trained weights under other positions.

pixart run quickstart --only data,encoders,features,stage1,reparameterised,stage2
pixart run benchmarks/resolution_start.yaml
python benchmarks/resolution_start.py --json benchmarks/results/resolution_start.json
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine, write_result

from pixart_core.artifacts.features import FeatureStore
from pixart_core.diffusion.schedule import NoiseSchedule
from pixart_core.models.files import load_transformer
from pixart_core.models.resolution import Resolution, change_resolution
from pixart_core.training.batches import Unconditional, make_batch
from pixart_core.training.step import batch_loss

# Stage 2 of the quickstart: latents of 32, patches of 4, positions 0 to 8.
CHANGES = {
    "as trained": None,
    "range 8, sample_size 64, scale 2 (interpolated)": Resolution(64, 2.0),
    "range 8, sample_size 48, scale 1.5 (interpolated)": Resolution(48, 1.5),
    "range 16, sample_size 64, scale 1 (continued)": Resolution(64, 1.0),
}


@torch.no_grad()
def mean_loss(model: Any, store: FeatureStore, images: int) -> float:
    """Mean squared error of the clean latents, the same pictures, noise and timesteps for every model."""
    (bucket,) = store.buckets
    schedule, losses = NoiseSchedule(torch.device("cpu")), []
    for start in range(0, images, 16):
        batch = make_batch(
            store.batch(bucket, range(start, start + 16)),
            range(16),
            seed=0,
            step=start,
            scaling_factor=store.scaling_factor,
            shift_factor=store.shift_factor,
            dropout=0.0,
            unconditional=Unconditional(store.empty_caption().float(), keeps_mask=False),
            null_class=None,
        )
        terms = batch_loss(
            model,
            batch,
            schedule=schedule,
            prediction_type="sample",
            autocast=None,
        )
        losses.append(terms.mse.mean())
    return float(torch.stack(losses).mean())


def main() -> None:
    """Print a table of the losses, and write it if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, default=Path("runs/quickstart/stage2"))
    parser.add_argument("--features", type=Path, default=Path("runs/resolution_start"))
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    machine = describe_machine()
    model = load_transformer(arguments.checkpoint).eval()
    stores = [FeatureStore(arguments.features / name) for name in ("features_64", "features_128")]
    sizes = ["{}x{}".format(*next(iter(store.buckets))) for store in stores]
    table = {}
    for name, resolution in CHANGES.items():
        changed = model if resolution is None else change_resolution(model, resolution).eval()
        losses = [mean_loss(changed, store, arguments.images) for store in stores]
        table[name] = dict(zip(sizes, losses, strict=True))
        print(f"{name:<52}" + "".join(f"{size:>9} {loss:.5f}" for size, loss in table[name].items()))
    if arguments.json:
        results = {"images": arguments.images, "mse_of_clean_latents": table}
        write_result(arguments.json, "benchmarks/resolution_start.py", results, machine)


if __name__ == "__main__":
    main()
