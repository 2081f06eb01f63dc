"""Gradient checkpointing: the same gradients, fewer bytes, no matrix product twice."""

import gc
from collections import Counter

import pytest
import torch
from random_models import COMBINATIONS, conditions, random_model
from safetensors.torch import load_file
from stores import write_tiny_store
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from pixart_core.models.build import build_transformer
from pixart_core.progress import Silent
from pixart_core.recipe.training import ModelOptions, TrainStep
from pixart_core.training.loop import run_training

MODES = ["none", "selective", "full"]


class Operations(TorchDispatchMode):
    """Counts the operations that run, and keeps a weak reference to the memory of each result."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counter()
        self.storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.counts[function.overloadpacket.__name__] += 1
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[StorageWeakRef(storage)] = storage.nbytes()
        return result

    def alive(self) -> int:
        """Bytes of all results that something still holds."""
        gc.collect()
        return sum(size for storage, size in self.storages.items() if not storage.expired())


def inputs(config, side: int = 16):
    generator = torch.Generator().manual_seed(5)
    latents = torch.randn(3, config.in_channels, side, side, generator=generator)
    return latents, torch.tensor([0, 500, 999]), conditions(config)


def loss_of(model, config, *, side: int = 16, autocast: bool = False) -> torch.Tensor:
    latents, timesteps, given = inputs(config, side)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(latents, timesteps, **given)
    return output.float().square().mean()


def gradients(model, mode: str, **options) -> dict[str, torch.Tensor]:
    model.gradient_checkpointing = mode
    model.zero_grad()
    loss_of(model, model.config, **options).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("side", [16, 36], ids=["products", "fused attention"])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_gradients_are_the_same_bit_for_bit(combination, side, autocast, mode) -> None:
    conditioning, modulation = combination
    model = random_model(conditioning=conditioning, modulation=modulation)
    expected = gradients(model, "none", side=side, autocast=autocast)
    found = gradients(model, mode, side=side, autocast=autocast)
    assert found.keys() == expected.keys()
    assert all(gradient.abs().max() > 0 for gradient in expected.values())
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name


def test_gradients_are_the_same_with_an_embedder_a_block() -> None:
    model = random_model(conditioning="class", embedders="per_block", timestep_freq_shift=1)
    expected = gradients(model, "none")
    for mode in MODES[1:]:
        found = gradients(model, mode)
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize(
    ("combination", "side", "autocast"),
    [(COMBINATIONS[0], 16, False), (COMBINATIONS[0], 36, True), (COMBINATIONS[3], 36, False)],
)
def test_the_forward_pass_keeps_less_and_less(combination, side, autocast) -> None:
    conditioning, modulation = combination
    model = random_model(conditioning=conditioning, modulation=modulation, num_layers=6)
    loss_of(model, model.config, side=side)  # the position table is kept in any case
    kept = {}
    for mode in MODES:
        model.gradient_checkpointing = mode
        with Operations() as operations:
            loss = loss_of(model, model.config, side=side, autocast=autocast)
        kept[mode] = operations.alive()
        assert loss.requires_grad
    assert kept["none"] > 1.2 * kept["selective"]
    assert kept["selective"] > 2 * kept["full"]


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("side", [16, 36], ids=["products", "fused attention"])
def test_selective_computes_no_matrix_product_or_attention_twice(combination, side) -> None:
    conditioning, modulation = combination
    model = random_model(conditioning=conditioning, modulation=modulation)
    counts = {}
    for mode in MODES:
        model.gradient_checkpointing = mode
        model.zero_grad()
        with Operations() as operations:
            loss_of(model, model.config, side=side).backward()
        counts[mode] = operations.counts
    names = {name for name in counts["none"] if "mm" in name or "scaled_dot_product" in name}
    assert {"addmm", "mm"} <= names
    for name in names:
        assert counts["selective"][name] == counts["none"][name], name
    # Norms and GELUs (on a CPU sigmoids) of the three blocks again.
    assert counts["selective"]["native_layer_norm"] == counts["none"]["native_layer_norm"] + 2 * 3
    assert counts["selective"]["sigmoid_"] > counts["none"]["sigmoid_"]
    assert counts["full"]["addmm"] > counts["none"]["addmm"]


def test_nothing_is_checkpointed_without_gradients() -> None:
    model = random_model()
    for mode in MODES:
        model.gradient_checkpointing = mode
        with torch.no_grad(), Operations() as operations:
            loss_of(model, model.config)
        assert operations.counts["addmm"] == (8 + 2) * 3 + 2 + 1 + 1 + 2 + 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_models_made_on_the_meta_device_train_once_they_have_weights(combination, mode) -> None:
    conditioning, modulation = combination
    expected = random_model(conditioning=conditioning, modulation=modulation)
    with torch.device("meta"):
        model = build_transformer(expected.config)
    model.gradient_checkpointing = mode
    latents, timesteps, given = inputs(expected.config)
    shape = model(
        latents.to("meta"), timesteps.to("meta"), **{n: t.to("meta") for n, t in given.items()}
    ).shape
    assert shape == (3, 8, 16, 16)
    model.load_state_dict(expected.state_dict(), strict=True, assign=True)
    model.requires_grad_(True)
    found = gradients(model, mode)
    for name, gradient in gradients(expected, "none").items():
        assert torch.equal(found[name], gradient), name


@pytest.fixture
def one_process(tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("combination", COMBINATIONS)
def test_it_works_under_distributed_data_parallel(one_process, combination) -> None:
    conditioning, modulation = combination
    model = random_model(conditioning=conditioning, modulation=modulation)
    expected = gradients(model, "none")
    for mode in MODES:
        model.gradient_checkpointing = mode
        model.zero_grad()
        parallel = DistributedDataParallel(model)
        for _ in range(2):  # accumulation: the reducer must be ready again
            loss_of(parallel, model.config).backward()
        for name, parameter in model.named_parameters():
            if name in expected:
                assert torch.equal(parameter.grad, 2 * expected[name]), (mode, name)


def test_a_training_run_ends_with_the_same_weights(tmp_path) -> None:
    store = write_tiny_store(tmp_path / "features")
    weights = {}
    for mode in MODES:
        step = TrainStep(
            features=str(store),
            model=ModelOptions(num_layers=2, num_attention_heads=2, attention_head_dim=8, sample_size=8),
            max_train_steps=4,
            global_batch_size=4,
            micro_batch_size=2,
            learning_rate=1e-3,
            lr_warmup_steps=0,
            gradient_checkpointing=mode,
        )
        run_training(step, tmp_path / mode, Silent())
        weights[mode] = load_file(tmp_path / mode / "transformer/diffusion_pytorch_model.safetensors")
    for mode in MODES[1:]:
        assert all(torch.equal(weights[mode][name], tensor) for name, tensor in weights["none"].items())
