"""Captioning with a tiny random LLaVA: every image once, whatever kills the run."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from broken_images import encode, noise, write_salted_folder

from pixart_core.artifacts.caption_parts import PARTS
from pixart_core.artifacts.captions import CAPTIONS, FAILED, read_captions
from pixart_core.artifacts.card import Card
from pixart_core.artifacts.manifest import read_manifest
from pixart_core.data.caption_flags import caption_flags
from pixart_core.encoders.caption import run_caption
from pixart_core.encoders.caption_rows import prompt_for
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Silent
from pixart_core.recipe.caption import CaptionStep

IMAGES = 14
EMOJI = Path(__file__).parents[1].parent / "shared" / "data" / "emoji"


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny_llava import save_tiny_llava

    return save_tiny_llava(tmp_path_factory.mktemp("models") / "llava")


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory, llava: Path) -> CaptionStep:
    folder = write_salted_folder(tmp_path_factory.mktemp("data") / "salted", good=IMAGES)
    return CaptionStep(
        data=str(folder), captioner=str(llava), max_bad_fraction=0.5, batch_size=4, max_new_tokens=8,
        device="cpu",
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, step: CaptionStep) -> Path:
    output = tmp_path_factory.mktemp("captions") / "whole"
    result = run_caption(step, output, Silent())
    assert (result["images"], result["captioned_now"]) == (IMAGES, IMAGES)
    assert result["output"] == str(output)
    json.dumps(result)
    return output


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_every_usable_image_gets_its_own_caption(undisturbed: Path) -> None:
    rows = read_captions(undisturbed)
    assert list(rows) == [record.id for record in read_manifest(undisturbed / "manifest").records]
    assert all(set(caption_flags(row.caption)) <= set(row.flags) for row in rows.values())
    assert not any(row.excluded or row.failed for row in rows.values())
    assert len({row.caption for row in rows.values()}) > IMAGES // 2  # the model does look at the picture
    assert not (undisturbed / PARTS).exists()


def test_captions_are_what_the_model_says_of_each_image_alone(
    undisturbed: Path, step: CaptionStep, llava: Path
) -> None:
    """Oracle: transformers' own classes, one image at a time, without padding or batches."""
    import torch
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    from pixart_core.data.images import ImageReader

    processor = AutoProcessor.from_pretrained(llava)
    model = LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32).eval()
    manifest = read_manifest(undisturbed / "manifest")
    rows = read_captions(undisturbed)
    for record in manifest.records:
        image = ImageReader(manifest.folder).read(record)
        inputs = processor(images=image, text=f"USER: <image> {step.prompt} ASSISTANT:", return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        assert rows[record.id].caption == processor.decode(new, skip_special_tokens=True).strip()
        ran_into_the_limit = len(new) == 8 and model.generation_config.eos_token_id not in new
        assert ("truncated" in rows[record.id].flags) >= ran_into_the_limit


def test_a_finished_run_does_nothing_again(
    step: CaptionStep, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(undisturbed)
    monkeypatch.setattr("pixart_core.encoders.caption._rows", lambda *_: pytest.fail("captioned again"))
    result = run_caption(step, undisturbed, Silent())
    assert (result["images"], result["captioned_now"]) == (IMAGES, 0)
    assert contents(undisturbed) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": "What is it?"}, "prompt was 'Describe this .*', now 'What is it\\?'"),
        ({"max_new_tokens": 9}, "max_new_tokens was 8, now 9"),
        ({"with_original_caption": True}, "with_original_caption was False, now True"),
        ({"captioner": "org/other"}, "captioner was .*, now 'org/other'"),
        ({"retry_flagged": 1}, "retry_flagged was None, now 1"),
    ],
)
def test_other_settings_never_continue_the_same_folder(
    step: CaptionStep, undisturbed: Path, change: dict[str, object], message: str
) -> None:
    before = contents(undisturbed)
    with pytest.raises(UserError, match=message):
        run_caption(step.model_copy(update=change), undisturbed, Silent())
    run_caption(step, undisturbed, Silent())
    assert contents(undisturbed) == before


def test_more_images_and_another_batch_size_keep_what_is_there(
    tmp_path: Path, step: CaptionStep, undisturbed: Path
) -> None:
    output = tmp_path / "grown"
    run_caption(step.model_copy(update={"limit": 6}), output, Silent())
    first = read_captions(output)
    result = run_caption(step.model_copy(update={"batch_size": 3}), output, Silent())
    assert result["captioned_now"] == IMAGES - 6
    assert (output / CAPTIONS).read_bytes() == (undisturbed / CAPTIONS).read_bytes()
    # Fewer again: nothing is lost, only not counted.
    result = run_caption(step.model_copy(update={"limit": 6}), output, Silent())
    assert (result["images"], result["captioned_now"]) == (6, 0)
    assert list(read_captions(output))[:6] == list(first)
    assert set(read_captions(output)) == set(read_captions(undisturbed))


def test_one_new_image_is_captioned_alone(tmp_path: Path, step: CaptionStep) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a", "c"):
        (folder / f"{name}.png").write_bytes(encode(noise()))
    grown = step.model_copy(update={"data": str(folder)})
    run_caption(grown, tmp_path / "out", Silent())
    (folder / "b.png").write_bytes(encode(noise(seed=5)))
    result = run_caption(grown, tmp_path / "out", Silent())
    assert (result["images"], result["captioned_now"]) == (3, 1)
    manifest = read_manifest(tmp_path / "out" / "manifest")
    assert list(read_captions(tmp_path / "out")) == [record.id for record in manifest.records]


def test_an_image_that_broke_after_the_scan_is_one_row_of_the_ledger_until_it_is_mended(
    tmp_path: Path, step: CaptionStep
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in "abcde":
        (folder / f"{name}.png").write_bytes(encode(noise(seed=ord(name))))
    scanned = step.model_copy(update={"data": str(folder)})
    run_caption(scanned, tmp_path / "whole", Silent())
    # The scan is an input of its own, made before the image breaks.
    broken = scanned.model_copy(update={"data": str(tmp_path / "whole" / "manifest")})
    whole = (folder / "c.png").read_bytes()
    (folder / "c.png").write_bytes(whole[:100])

    result = run_caption(broken, tmp_path / "out", Silent())
    assert (result["images"], result["failed"], result["excluded"]) == (5, 1, 1)
    (failed,) = [json.loads(line) for line in (tmp_path / "out" / FAILED).read_text().splitlines()]
    assert failed["path"].endswith("c.png")
    assert failed["reason"].startswith("truncated: ")
    rows = read_captions(tmp_path / "out")
    assert [row.id for row in rows.values() if row.excluded] == [failed["id"]]
    assert rows[failed["id"]].flags == ("failed",)

    strict = broken.model_copy(update={"max_bad_fraction": 0.1})
    with pytest.raises(
        PixartError, match=r"1 of 4 images got no caption, the last one [^:]*c\.png: truncated: "
    ):
        run_caption(strict, tmp_path / "strict", Silent())

    (folder / "c.png").write_bytes(whole)
    result = run_caption(broken, tmp_path / "out", Silent())
    assert (result["captioned_now"], result["failed"]) == (1, 0)
    captions = {row.id: row.caption for row in read_captions(tmp_path / "out").values()}
    assert captions == {row.id: row.caption for row in read_captions(tmp_path / "whole").values()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "/nowhere/at/all"}, "no such folder or file"),
        ({"captioner": "/nowhere/llava"}, "/nowhere/llava is not a folder"),
        ({"device": "gpu7"}, "device: 'gpu7' is no device"),
        ({"quantization": "4bit"}, "quantization 4bit needs a GPU"),
        ({"tokenizer": "/nowhere/t5"}, "/nowhere/t5 is not a folder"),
    ],
)
def test_mistakes_get_one_clear_line(
    tmp_path: Path, step: CaptionStep, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run_caption(step.model_copy(update=change), tmp_path / "out", Silent())
    assert "\n" not in str(caught.value)
    mended = run_caption(step.model_copy(update={"limit": 1}), tmp_path / "out", Silent())
    assert mended["captioned_now"] == 1


def test_the_original_caption_is_context_only_where_there_is_one(
    undisturbed: Path, step: CaptionStep
) -> None:
    record = read_manifest(undisturbed / "manifest").records[0]
    assert prompt_for(step, record) == step.prompt
    told = step.model_copy(update={"with_original_caption": True})
    assert prompt_for(told, record) == (
        f'Given the caption of this image "{record.caption}", '
        "describe this image and its style in a very detailed manner"
    )
    assert prompt_for(told, dataclasses.replace(record, caption=" \n")) == step.prompt


def test_flagged_captions_are_asked_for_again_and_excluded(
    tmp_path: Path, step: CaptionStep, undisturbed: Path
) -> None:
    """The same image gets the same words whatever shares its batch: its draws are its own."""
    before = read_captions(undisturbed)
    flagged = {row.id for row in before.values() if row.flags}
    assert flagged
    retried = step.model_copy(update={"retry_flagged": 3, "retry_temperature": 3.0, "max_new_tokens": 8})
    run_caption(retried, tmp_path / "one", Silent())
    excluding = retried.model_copy(update={"batch_size": 5, "exclude_flagged": ("truncated", "repeated")})
    result = run_caption(excluding, tmp_path / "other", Silent())
    rows, other = read_captions(tmp_path / "one"), read_captions(tmp_path / "other")
    assert {i: (r.caption, r.attempt) for i, r in rows.items()} == {
        i: (r.caption, r.attempt) for i, r in other.items()
    }
    changed = {row_id for row_id, row in rows.items() if row.attempt}
    assert changed
    assert changed <= flagged
    assert all(len(rows[row_id].flags) < len(before[row_id].flags) for row_id in changed)
    assert all(rows[row_id].caption == before[row_id].caption for row_id in rows.keys() - changed)
    excluded = {row.id for row in other.values() if {"truncated", "repeated"} & set(row.flags)}
    assert {row.id for row in other.values() if row.excluded} == excluded
    assert result["excluded"] == len(excluded) > 0
    # What is left out is decided at the end: another choice captions nothing anew.
    result = run_caption(retried.model_copy(update={"batch_size": 5}), tmp_path / "other", Silent())
    assert (result["captioned_now"], result["excluded"]) == (0, 0)
    assert (tmp_path / "other" / CAPTIONS).read_bytes() == (tmp_path / "one" / CAPTIONS).read_bytes()


def test_captions_too_long_for_the_text_encoder_are_flagged_by_its_own_tokenizer(
    tmp_path: Path, step: CaptionStep, undisturbed: Path
) -> None:
    from transformers import AutoTokenizer

    from pixart_core.encoders.tiny_t5 import build_tokenizer

    tokenizer = build_tokenizer([row.caption for row in read_captions(undisturbed).values()])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert Card.read(undisturbed, "captions").details["flags"]["too_long"] is None  # T5's is not here

    output = tmp_path / "out"
    shutil.copytree(undisturbed, output)
    counting = step.model_copy(update={"tokenizer": str(tmp_path / "tokenizer"), "max_tokens": 7})
    result = run_caption(counting, output, Silent())
    assert result["tokenizer"].endswith("tokenizer")
    oracle = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    long = 0
    for row in read_captions(output).values():
        assert row.tokens == len(oracle(row.caption)["input_ids"])
        assert ("too_long" in row.flags) == (row.tokens > 7)
        long += row.tokens > 7
    assert 0 < long == result["flags"]["too_long"] < IMAGES


@pytest.mark.skipif(not EMOJI.is_dir(), reason="the emoji data are not here")
def test_real_tars_are_captioned_and_compared_with_their_own_captions(tmp_path: Path, llava: Path) -> None:
    pytest.importorskip("textblob")
    step = CaptionStep(data=str(EMOJI), captioner=str(llava), max_new_tokens=4, limit=20, device="cpu")
    result = run_caption(step, tmp_path / "out", Silent())
    assert result["images"] == len(read_captions(tmp_path / "out")) == 20
    assert sum(filter(None, result["flags"].values())) > 0  # four words end no sentence
    assert result["statistics"]["original"]["nouns_per_image"] > 3
