"""Laws of how extraction runs: kills, processes, threads, a full disk and broken data change no byte."""

import itertools
import os
import resource
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import pytest
import torch
from broken_images import unusable, write_salted_folder
from extraction import files, make_step, write_encoders, write_pictures

from pixart_core.artifacts.feature_packing import Storage
from pixart_core.artifacts.feature_plan import FeaturePlan, PlannedImage
from pixart_core.artifacts.feature_writer import FeatureWriter, OpenText
from pixart_core.artifacts.features import FeatureStore
from pixart_core.artifacts.lock import only_launch
from pixart_core.artifacts.manifest import read_manifest
from pixart_core.encoders.extract import run_extraction
from pixart_core.encoders.feature_encode import encode_text_shards, shard_texts
from pixart_core.encoders.text import TextEncoder, load_text_encoder
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Silent

OPTIONS = {
    "resolutions": [16, 32],
    "aspect_buckets": [[16, 16], [8, 24], [24, 8]],
    "horizontal_flip": True,
    "storage": "int8",
    "shard_size": 5,
}
EMOJI = Path(__file__).parents[2] / "shared/data/emoji/noto-v1.tar"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data") / "pictures", range(24))


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoders(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def undisturbed(data: Path, encoders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("store") / "features"
    run_extraction(make_step(data, encoders, **OPTIONS), folder, Silent())
    return files(folder)


# Children are forked before torch has threads, so that its slow import is paid once. First two that are
# told of each other as torchrun does it; then one after the other, killed at counted calls: of all of ours
# (shares of how many it takes), or (fsync and rename among them) of the code that writes files. A store that
# one finished is compared and begun again.
FORKS = """
import itertools, os, random, shutil, sys
from pathlib import Path
import torch
from counted_kills import kill_at_call, on_call
from extraction import files
from forked_ranks import fork_ranks
from pixart_core.encoders.extract import run_extraction
from pixart_core.progress import Silent
from pixart_core.recipe.features import ExtractFeaturesStep
torch.set_num_threads(1)
step = ExtractFeaturesStep.model_validate_json(sys.argv[1])
output, whole = Path(sys.argv[2]), Path(sys.argv[3])
ours = tuple(map(str, Path(sys.modules["pixart_core"].__file__).parent.rglob("*.py")))
writing = ("publish.py", "_files.py", "_index.py", "_guard.py", "_plan.py", "_writer.py", "scan_log.py")
draws, expected = random.Random(0), files(whole)
assert fork_ranks(2, lambda rank: run_extraction(step, output, Silent())) == [0, 0]
assert files(output) == expected
shutil.rmtree(output)

def count(rank):
    calls = itertools.count()
    on_call(lambda: next(calls), ours)
    run_extraction(step, output, Silent())
    sys.setprofile(None)
    (output.parent / "calls").write_text(str(next(calls)))

def killed(rank):
    kill_at_call(*places)
    run_extraction(step, output, Silent())

assert fork_ranks(1, count) == [0]
calls = int((output.parent / "calls").read_text())
shutil.rmtree(output)
kills = 0
while kills < 20:
    share, file = draws.uniform(0.05, 0.95), kills % 2 == 1
    places = (draws.randrange(1, 1500), writing) if file else (int(share * calls), ours)
    (code,) = fork_ranks(1, killed)
    if code == -9:
        kills += 1
        print("killed", len(list(output.glob("*-*.safetensors"))), flush=True)
    else:
        assert code == 0, code
        assert files(output) == expected
        shutil.rmtree(output)
assert fork_ranks(1, lambda rank: run_extraction(step, output, Silent())) == [0]
assert files(output) == expected
"""


def test_killed_anywhere_or_shared_by_two_it_ends_with_the_bytes_of_an_undisturbed_run(
    undisturbed: dict[str, bytes], data: Path, encoders: Path, tmp_path: Path
) -> None:
    for name, content in undisturbed.items():
        (tmp_path / "whole" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "whole" / name).write_bytes(content)
    step = make_step(data, encoders, **OPTIONS)
    command = [
        sys.executable,
        "-c",
        FORKS,
        step.model_dump_json(),
        str(tmp_path / "out"),
        str(tmp_path / "whole"),
    ]
    here = Path(__file__).parent
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here}:{here.parent}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shards = [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("killed")]
    assert len(shards) == 20
    assert len(set(shards)) >= 4  # early, late and in between


WORKER = """
import os, sys
from pathlib import Path
from pixart_core.encoders.extract import run_extraction
from pixart_core.progress import Silent
from pixart_core.recipe.features import ExtractFeaturesStep
step = ExtractFeaturesStep.model_validate_json(Path(sys.argv[1]).read_text())
result = run_extraction(step, Path(sys.argv[2]), Silent())
Path(f"{sys.argv[2]}-{os.environ['RANK']}").write_text(str(result.get("complete")))
"""


def test_three_processes_of_torchrun_make_the_store_of_one(
    undisturbed: dict[str, bytes], data: Path, encoders: Path, tmp_path: Path
) -> None:
    (tmp_path / "step.json").write_text(make_step(data, encoders, **OPTIONS).model_dump_json())
    (tmp_path / "worker.py").write_text(WORKER)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=3"]
    launch += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    done = subprocess.run(
        [*launch, *(str(tmp_path / name) for name in ("worker.py", "step.json", "out"))],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [(tmp_path / f"out-{rank}").read_text() for rank in range(3)] == ["True", "None", "None"]
    assert files(tmp_path / "out") == undisturbed


def test_the_number_of_threads_changes_no_byte(
    undisturbed: dict[str, bytes], data: Path, encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for count in (1, 5):
        monkeypatch.setattr("pixart_core.encoders.ahead.workers", lambda count=count: count)
        run_extraction(make_step(data, encoders, **OPTIONS), tmp_path / str(count), Silent())
        assert files(tmp_path / str(count)) == undisturbed


def test_a_second_launch_is_told_to_wait(data: Path, encoders: Path, tmp_path: Path) -> None:
    with only_launch(tmp_path / "out"), pytest.raises(UserError, match="another run is writing to it"):
        run_extraction(make_step(data, encoders), tmp_path / "out", Silent())


@pytest.mark.parametrize("limit", [2_000, 9_000, 14_000])
def test_a_full_disk_is_one_error_and_the_next_run_goes_on(
    undisturbed: dict[str, bytes], data: Path, encoders: Path, tmp_path: Path, limit: int
) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Writes beyond the limit fail as those on a full disk do, only with another reason.
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(PixartError, match=r"cannot write .*out"):
            run_extraction(make_step(data, encoders, **OPTIONS), tmp_path / "out", Silent())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert not list(tmp_path.rglob("*.partial"))
    run_extraction(make_step(data, encoders, **OPTIONS), tmp_path / "out", Silent())
    assert files(tmp_path / "out") == undisturbed


def test_broken_files_are_counted_and_every_other_image_is_there(encoders: Path, tmp_path: Path) -> None:
    folder = write_salted_folder(tmp_path / "salted", good=14)
    options = {"resolution": 32, "aspect_buckets": "square", "max_bad_fraction": 0.5}
    result = run_extraction(make_step(folder, encoders, **options), tmp_path / "out", Silent())
    manifest = read_manifest(tmp_path / "out/manifest")
    assert result["count"] == len(manifest.records) == 14
    store = FeatureStore(tmp_path / "out")
    assert set(store.sample_ids((32, 32))) == {record.id for record in manifest.records}
    dropped = (tmp_path / "out/manifest/dropped.jsonl").read_text().splitlines()
    assert len(dropped) == len(unusable())


@pytest.mark.skipif(not EMOJI.exists(), reason="the emoji data are not here")
def test_real_pictures_of_an_archive_are_all_there_with_their_sizes(encoders: Path, tmp_path: Path) -> None:
    options = {"aspect_buckets": "square", "limit": 60, "label_key": "group", "storage": "int8"}
    step = make_step(EMOJI, encoders, resolutions=[32, 64], heldout_fraction=0.1, **options)
    result = run_extraction(step, tmp_path / "out", Silent())
    train = read_manifest(tmp_path / "out/manifest").split("train")
    assert result["count"] == len(train) < 60
    store = FeatureStore(tmp_path / "out", 64)
    batch = store.batch((64, 64), range(len(train)))
    records = {record.id: record for record in train}
    assert [records[name].label for name in batch.ids] == batch.labels.tolist()
    assert batch.sizes.tolist() == [[records[name].height, records[name].width] for name in batch.ids]
    assert batch.mean.isfinite().all()
    assert all(0 < error < 0.02 for error in result["error"].values())


def text_shards(encoders: Path, folder: Path) -> tuple[TextEncoder, FeaturePlan, dict[str, str]]:
    """An encoder, the plan of a store in `folder` with 2 full text shards, and the caption of each image."""
    captions = {f"{number:016x}": f"{'very ' * (number % 5)}small kind {number}" for number in range(15)}
    plan = FeaturePlan.open(folder, {}, tables={16: ((16, 16),)}, shard_size=8)
    plan.extend(PlannedImage(name, text, None, 16, 16, ((16, 16),)) for name, text in captions.items())
    return load_text_encoder(str(encoders)), plan, captions


@pytest.mark.parametrize("storage", ["int8", "fp32"])
def test_captions_that_are_packed_batch_by_batch_give_the_bytes_of_those_packed_in_their_order(
    storage: Storage, encoders: Path, tmp_path: Path
) -> None:
    encoder, plan, captions = text_shards(encoders, tmp_path / "streamed")
    writer = FeatureWriter(tmp_path / "streamed", plan, storage, first=True)
    shards = writer.missing("text")
    assert [len(shard.rows) for shard in shards] == [8, 8]
    options = {"max_tokens": 120, "batch_size": 3}
    encode_text_shards(encoder, shards, plan, captions.__getitem__, writer, Silent(), **options)
    _, plan, _ = text_shards(encoders, tmp_path / "ordered")
    writer = FeatureWriter(tmp_path / "ordered", plan, storage, first=True)
    for shard, texts in shard_texts(plan, shards, captions.__getitem__):
        writer.write_text(shard, encoder.encode_each(texts, **options))
    assert files(tmp_path / "streamed") == files(tmp_path / "ordered")


def test_a_few_batches_of_text_are_held_and_the_next_are_encoded_while_a_shard_is_written(
    encoders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, plan, captions = text_shards(encoders, tmp_path)
    held: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most, second_shard, encode = 0, threading.Event(), TextEncoder._encode_ids
    begun = itertools.count(1)

    def encode_ids(self: TextEncoder, ids: list[list[int]]) -> list[torch.Tensor]:
        nonlocal most
        if next(begun) > 8:  # one caption a batch, and this is of the second shard
            second_shard.set()
        states = encode(self, ids)
        held.update(states)
        most = max(most, len(held))
        return states

    def publish(opened: OpenText) -> None:
        assert second_shard.wait(600) or opened._shard is not writer.missing("text")[0]
        write(opened)

    write = OpenText.publish
    monkeypatch.setattr(TextEncoder, "_encode_ids", encode_ids)
    monkeypatch.setattr(OpenText, "publish", publish)
    monkeypatch.setattr("pixart_core.encoders.ahead.workers", lambda: 2)
    writer = FeatureWriter(tmp_path, plan, "fp32", first=True)
    shards, text = writer.missing("text"), captions.__getitem__
    encode_text_shards(encoder, shards, plan, text, writer, Silent(), max_tokens=120, batch_size=1)
    assert not FeatureWriter(tmp_path, plan, "fp32").missing("text")
    assert 1 <= most <= 5  # three ahead, one that is packed and the one before it
