"""Captioning with a tiny random LLaVA: every image once, whatever kills the run, and what counts it."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from broken_images import encode, noise, write_salted_folder

from pixart_core.artifacts.captions import CAPTIONS, SETTINGS, CaptionRow, open_caption_log, read_captions
from pixart_core.artifacts.manifest import read_manifest
from pixart_core.data.caption_flags import caption_flags
from pixart_core.encoders.caption import prompt_for, run_caption
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
    assert all(row.flags == caption_flags(row.caption) for row in rows.values())
    assert len({row.caption for row in rows.values()}) > IMAGES // 2  # the model does look at the picture


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
    for record in manifest.records[:3]:
        image = ImageReader(manifest.folder).read(record)
        inputs = processor(images=image, text=f"USER: <image> {step.prompt} ASSISTANT:", return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        new = tokens[0, inputs["input_ids"].shape[1] :]
        assert rows[record.id].caption == processor.decode(new, skip_special_tokens=True).strip()


def test_a_model_without_a_chat_template_gets_image_and_prompt(tmp_path: Path) -> None:
    import torch
    from tiny_llava import save_tiny_llava

    from pixart_core.encoders.captioner import VisionLanguageModel

    folder = save_tiny_llava(tmp_path / "plain", chat_template=False)
    model = VisionLanguageModel.load(str(folder), dtype="bf16", device=torch.device("cpu"), max_new_tokens=4)
    assert model.format_prompt("Describe this image") == "<image>\nDescribe this image"
    texts = model.describe([noise(), noise(seed=1)], ["Describe this image", "Describe"])
    assert len(texts) == 2
    assert model.model.dtype == torch.float32


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from pixart_core.encoders import caption, captioner
    from pixart_core.progress import Silent
    from pixart_core.recipe.caption import CaptionStep

    describe, calls = captioner.VisionLanguageModel.describe, []

    def die_in_the_third_batch(self, images, prompts):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return describe(self, images, prompts)

    captioner.VisionLanguageModel.describe = die_in_the_third_batch
    caption.run_caption(CaptionStep.model_validate_json(sys.argv[1]), Path(sys.argv[2]), Silent())
"""


def test_kill_9_loses_one_batch_and_the_end_is_the_same(
    tmp_path: Path, step: CaptionStep, undisturbed: Path
) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), step.model_dump_json(), str(tmp_path / "out")]
    killed = subprocess.run(command, capture_output=True, timeout=120, cwd=Path(__file__).parents[1])
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (tmp_path / "out" / CAPTIONS).read_bytes().count(b"\n") == 2 * step.batch_size
    with pytest.raises(UserError, match="unfinished"):
        read_captions(tmp_path / "out")
    result = run_caption(step, tmp_path / "out", Silent())
    assert result["captioned_now"] == IMAGES - 2 * step.batch_size
    assert contents(tmp_path / "out") == contents(undisturbed)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.62, 0.9, 0.999])
def test_a_file_torn_at_any_byte_is_mended(
    tmp_path: Path, step: CaptionStep, undisturbed: Path, share: float
) -> None:
    output = tmp_path / "torn"
    shutil.copytree(undisturbed, output)
    (output / "card.json").unlink()
    whole = (output / CAPTIONS).read_bytes()
    (output / CAPTIONS).write_bytes(whole[: int(share * len(whole))])
    run_caption(step, output, Silent())
    assert contents(output) == contents(undisturbed)


def test_a_finished_run_does_nothing_again(
    step: CaptionStep, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(undisturbed)
    monkeypatch.setattr(
        "pixart_core.encoders.caption._caption_all", lambda *_: pytest.fail("captioned again")
    )
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
    ],
)
def test_other_settings_never_continue_the_same_folder(
    step: CaptionStep, undisturbed: Path, change: dict[str, object], message: str
) -> None:
    before = contents(undisturbed)
    with pytest.raises(UserError, match=message):
        run_caption(step.model_copy(update=change), undisturbed, Silent())
    assert contents(undisturbed) == before


def test_more_images_and_another_batch_size_keep_what_is_there(
    tmp_path: Path, step: CaptionStep, undisturbed: Path
) -> None:
    output = tmp_path / "grown"
    run_caption(step.model_copy(update={"limit": 6}), output, Silent())
    first = (output / CAPTIONS).read_bytes()
    result = run_caption(step.model_copy(update={"batch_size": 3}), output, Silent())
    assert result["captioned_now"] == IMAGES - 6
    assert (output / CAPTIONS).read_bytes().startswith(first)
    assert {i: row.caption for i, row in read_captions(output).items()} == {
        i: row.caption for i, row in read_captions(undisturbed).items()
    }


def test_a_full_disk_is_one_clear_error_and_loses_nothing(tmp_path: Path) -> None:
    settings = {"settings": {}, "schedule": {}, "batch_size": 2, "ids": ["a", "b", "c", "d"]}
    one, other = (
        [CaptionRow("a", "x"), CaptionRow("b", "y")],
        [CaptionRow("c", "z" * 9000), CaptionRow("d", "")],
    )
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_caption_log(tmp_path, **settings) as log:
        log.append(one)
        before = (tmp_path / CAPTIONS).read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(PixartError, match="what is captioned is kept, run again"):
                log.append(other)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert (tmp_path / CAPTIONS).read_bytes() == before
    with open_caption_log(tmp_path, **settings) as log:
        assert log.done == {"a", "b"}
        log.append(other)
    with open_caption_log(tmp_path, **settings) as log:
        assert log.done == {"a", "b", "c", "d"}


def test_two_processes_never_write_the_same_captions(tmp_path: Path) -> None:
    options = {"settings": {}, "schedule": {}, "batch_size": 1, "ids": ["a"]}
    with (
        open_caption_log(tmp_path, **options),
        pytest.raises(UserError, match="another process"),
        open_caption_log(tmp_path, **options),
    ):
        pass


def test_damaged_rows_and_foreign_files_are_named(tmp_path: Path) -> None:
    options = {"settings": {}, "schedule": {}, "batch_size": 1, "ids": ["a"]}
    (tmp_path / CAPTIONS).write_text("mine\n")
    with pytest.raises(UserError, match=f"not {SETTINGS} beside it"), open_caption_log(tmp_path, **options):
        pass
    (tmp_path / CAPTIONS).unlink()
    with open_caption_log(tmp_path, **options) as log:
        log.append([CaptionRow("a", "x")])
    with (tmp_path / CAPTIONS).open("a") as file:
        file.write("{}\n")
    with (
        pytest.raises(UserError, match=r"captions\.jsonl:2: damaged row"),
        open_caption_log(tmp_path, **options),
    ):
        pass


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "/nowhere/at/all"}, "no such folder or file"),
        ({"captioner": "/nowhere/llava"}, "captioner: /nowhere/llava is not a folder or hub id"),
        ({"device": "gpu7"}, "device: 'gpu7' is no device"),
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


def test_a_text_model_is_no_captioner(tmp_path: Path, step: CaptionStep) -> None:
    from transformers import BertConfig

    BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="is not a folder or hub id of an image-text-to-text model"):
        run_caption(step.model_copy(update={"captioner": str(tmp_path / "bert")}), tmp_path / "out", Silent())


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


@pytest.mark.skipif(not EMOJI.is_dir(), reason="the emoji data are not here")
def test_real_tars_are_captioned_and_compared_with_their_own_captions(tmp_path: Path, llava: Path) -> None:
    pytest.importorskip("textblob")
    step = CaptionStep(data=str(EMOJI), captioner=str(llava), max_new_tokens=4, limit=20, device="cpu")
    result = run_caption(step, tmp_path / "out", Silent())
    assert result["images"] == len(read_captions(tmp_path / "out")) == 20
    assert sum(result["flags"].values()) > 0  # four words end no sentence
    assert result["statistics"]["original"]["nouns_per_image"] > 3


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
