"""A batch that does not fit the memory: what it was, and a setting that fits."""

import torch

from pixart_core.recipe.model_counts import Interface, activation_bytes
from pixart_core.training.pace import counted_model
from pixart_core.training.run import Run

# torch's words for a failed allocation on a CPU, and on a GPU where not torch but a library asked for memory.
_SIGNS = (
    "can't allocate memory", "not enough memory", "DefaultCPUAllocator",
    "CUDA error: out of memory", "_STATUS_ALLOC_FAILED",
)  # fmt: skip


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory could not be had."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _SIGNS)


def what_fits(run: Run) -> str:
    """What did not fit, and settings that give the same training in less memory."""
    step, (height, width) = run.step, run.order[run.counters.step][0]
    batch = next(iter(run.micro_batches()))
    rows, columns = batch.latents.shape[-2:]
    tokens = (rows // run.model.config.patch_size) * (columns // run.model.config.patch_size)
    size = run.micro_batch_size
    head = (
        f"out of memory at step {run.counters.step + 1}: {size} images of {height}x{width} at a time "
        f"({tokens} tokens each) do not fit"
    )
    options = []
    smaller = _smaller(run)
    if smaller:
        count = step.global_batch_size // run.accelerator.num_processes // smaller
        options.append(f"micro_batch_size={smaller} ({count} a step one after the other, the same training)")
    if step.gradient_checkpointing != "full":
        kept = _kept_gigabytes(run, tokens, step.gradient_checkpointing)
        full = _kept_gigabytes(run, tokens, "full")
        options.append(
            f"gradient_checkpointing=full (slower; by count {full:.3g} GB of activations, not {kept:.3g})"
        )
    if not options:
        options = ["distributed=fsdp2 on several GPUs", "optimizer.kind=adamw8bit", "offload_ema=true"]
    return f"{head}; continue with {', or '.join(options)}. What was saved is kept"


def _smaller(run: Run) -> int | None:
    """Half of the micro-batch, or the next smaller number that divides this process's share."""
    share = len(run.slots)
    below = range(run.micro_batch_size // 2, 0, -1)
    return next((size for size in below if share % size == 0), None)


def _kept_gigabytes(run: Run, tokens: int, checkpointing: str) -> float:
    config = run.model.config
    model, interface = counted_model(config), Interface(config.in_channels, config.caption_channels)
    each = activation_bytes(
        model, tokens, interface, precision=run.step.mixed_precision, checkpointing=checkpointing
    )
    return each * run.micro_batch_size / 1e9
