"""Captions by an OpenAI-compatible server: failures of every kind, bounded concurrency, no key anywhere."""

import email.utils
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_images import encode, noise
from chat_endpoint import Asked, Endpoint, Reply, answer, describe, image_of, serving

from pixart_core.artifacts.captions import CAPTIONS, FAILED, read_captions
from pixart_core.artifacts.manifest import read_manifest
from pixart_core.data.caption_flags import caption_flags
from pixart_core.encoders.caption import run_caption
from pixart_core.encoders.chat_server import ChatServer
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Silent
from pixart_core.recipe.caption import CaptionStep

IMAGES = 12
KEY = "sk-very-secret-0123456789"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "images"
    folder.mkdir()
    for number in range(IMAGES):
        (folder / f"{number:02d}.png").write_bytes(encode(noise(seed=number)))
        (folder / f"{number:02d}.txt").write_text(f"original {number}")
    return folder


def step_for(data: Path, endpoint: Endpoint, **options: Any) -> CaptionStep:
    given = {"captioner": "vlm", "api_backoff": 0.01, "api_timeout": 600.0, "concurrency": 4}
    return CaptionStep(data=str(data), api_base=endpoint.base, **given | options)


def test_each_image_is_asked_about_once_as_the_protocol_wants_it(tmp_path: Path, data: Path) -> None:
    with serving(Endpoint()) as endpoint:
        step = step_for(
            data, endpoint, with_original_caption=True, api_image_format="png", max_new_tokens=77,
            api_extra={"top_p": 0.5, "temperature": None},
        )  # fmt: skip
        result = run_caption(step, tmp_path / "out", Silent())
    assert (result["images"], result["captioned_now"], result["failed"]) == (IMAGES, IMAGES, 0)
    rows = read_captions(tmp_path / "out")
    records = read_manifest(tmp_path / "out" / "manifest").records
    assert list(rows) == [record.id for record in records]
    assert len(endpoint.asked) == IMAGES
    by_image = {asked.image: asked for asked in endpoint.asked}
    for number, record in enumerate(records):
        asked = by_image[rows[record.id].caption.split()[3]]
        assert asked.path == "/v1/chat/completions"
        assert np.array_equal(np.asarray(image_of(asked.body)), np.asarray(noise(seed=number)))
        text = asked.body["messages"][0]["content"][1]["text"]
        assert text == (
            f'Given the caption of this image "original {number}", '
            "describe this image and its style in a very detailed manner"
        )
        rest = {key: value for key, value in asked.body.items() if key != "messages"}
        assert rest == {"model": "vlm", "max_tokens": 77, "top_p": 0.5}
        assert "Authorization" not in asked.headers


def test_large_images_are_scaled_down_small_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name, size in (("wide", (300, 100)), ("small", (40, 30))):
        (tmp_path / "data" / f"{name}.png").write_bytes(encode(noise(*size)))
    with serving(Endpoint()) as endpoint:
        run_caption(step_for(tmp_path / "data", endpoint, max_image_side=90), tmp_path / "out", Silent())
    assert {image_of(asked.body).size for asked in endpoint.asked} == {(90, 30), (40, 30)}


def test_whatever_goes_wrong_for_a_while_is_asked_again(tmp_path: Path, data: Path) -> None:
    later = email.utils.format_datetime(email.utils.datetime.datetime.now(email.utils.datetime.timezone.utc))
    hiccups = [
        Reply(429, {"error": {"message": "slow down"}}, {"Retry-After": "0.02"}),
        Reply(503, b"<html>starting", {"Retry-After": later}),
        Reply(500, {"detail": "boom"}),
        Reply(0),
        Reply(200, b"no json"),
        Reply(200, {"choices": []}),
        Reply(200, {"choices": [{"message": {"content": 5}}]}),
        Reply(200, {}, delay=1.5),  # longer than the timeout
    ]

    def reply(asked: Asked, times: int) -> Reply:
        return hiccups[times - 1] if times <= len(hiccups) else describe(asked)

    with serving(Endpoint()) as calm, serving(Endpoint(reply)) as endpoint:
        run_caption(step_for(data, calm, limit=3), tmp_path / "calm", Silent())
        # Others may be late as well where the machine is busy: then they are asked for once more.
        step = step_for(data, endpoint, limit=3, api_timeout=1.0, api_retries=50)
        result = run_caption(step, tmp_path / "rough", Silent())
    assert calm.base != endpoint.base
    assert result["failed"] == 0
    assert len(endpoint.asked) >= 3 * (len(hiccups) + 1)
    assert (tmp_path / "rough" / CAPTIONS).read_bytes() == (tmp_path / "calm" / CAPTIONS).read_bytes()


def test_retry_after_is_waited_for_and_pauses_grow(tmp_path: Path, data: Path) -> None:
    def reply(asked: Asked, times: int) -> Reply:
        wait = {"Retry-After": "0.4"} if times == 1 else {}
        return Reply(429, {}, wait) if times <= 5 else describe(asked)

    with serving(Endpoint(reply)) as endpoint:
        run_caption(step_for(data, endpoint, limit=1, api_backoff=0.04), tmp_path / "out", Silent())
    times = [asked.time for asked in endpoint.asked]
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert pauses[0] >= 0.4
    for exponent, pause in enumerate(pauses[1:], start=1):
        assert pause >= 0.04 * 2**exponent / 2  # half of it is jitter


@pytest.mark.parametrize("concurrency", [1, 3])
def test_never_more_requests_at_once_than_asked_for_and_no_fewer(
    tmp_path: Path, data: Path, concurrency: int
) -> None:
    together = threading.Barrier(concurrency)

    def reply(asked: Asked, _: int) -> Reply:
        together.wait(600)  # no answer before so many have asked
        return Reply(200, describe(asked).body, delay=0.03)

    with serving(Endpoint(reply)) as endpoint:
        run_caption(step_for(data, endpoint, concurrency=concurrency), tmp_path / "out", Silent())
    assert IMAGES % concurrency == 0
    assert endpoint.most_at_once == concurrency


def test_an_image_that_the_server_refuses_is_one_row_of_the_ledger(tmp_path: Path, data: Path) -> None:
    refused: list[str] = []

    def reply(asked: Asked, _: int) -> Reply:
        if not refused or asked.image in refused:
            refused.append(asked.image)
            return Reply(400, {"error": {"message": "image is\n\ntoo odd"}})
        return describe(asked)

    with serving(Endpoint(reply)) as endpoint:
        step = step_for(data, endpoint, max_bad_fraction=0.2, concurrency=1)
        result = run_caption(step, tmp_path / "out", Silent())
        assert (result["failed"], result["excluded"]) == (1, 1)
        assert len(refused) == 1  # not asked again for the same
        (line,) = (tmp_path / "out" / FAILED).read_text().splitlines()
        assert json.loads(line)["reason"] == "HTTP 400: image is too odd"
        assert json.loads(line)["path"].endswith(".png")
        rows = read_captions(tmp_path / "out")
        assert [row.flags for row in rows.values() if row.excluded] == [("failed",)]
        # The next run asks about that one alone.
        refused[:] = ["none"]
        result = run_caption(step, tmp_path / "out", Silent())
        assert (result["captioned_now"], result["failed"]) == (1, 0)
        assert len(endpoint.asked) == IMAGES + 1


def test_too_many_refusals_stop_the_run_and_raising_the_limit_goes_on(tmp_path: Path, data: Path) -> None:
    refused: list[str] = []

    def reply(asked: Asked, _: int) -> Reply:
        refused[:] = refused or [asked.image]
        return Reply(413, b"too large") if asked.image in refused else describe(asked)

    with serving(Endpoint(reply)) as endpoint:
        step = step_for(data, endpoint, concurrency=1)
        message = r"1 of \d+ images got no caption, the last one .*\.png: HTTP 413: too large; .*max_bad_frac"
        with pytest.raises(PixartError, match=message):
            run_caption(step, tmp_path / "out", Silent())
        result = run_caption(step_for(data, endpoint, max_bad_fraction=0.9), tmp_path / "out", Silent())
        assert result["failed"] == 1
        # The one that stopped the run was tried again, and so were those under way then.
        assert IMAGES < len(endpoint.asked) <= IMAGES + 1 + 3


@pytest.mark.parametrize(
    ("reply", "models", "error", "message"),
    [
        (Reply(401, {"error": {"message": f"no {KEY}"}}), None, UserError, r"401: no \*\*\* \(api_key_env"),
        (Reply(404, {"message": "no model vlm"}), None, UserError, "model vlm: HTTP 404: no model vlm"),
        (Reply(307, b"", {"Location": "http://127.0.0.1:9/"}), None, UserError, "HTTP 307"),
        (None, Reply(403, b"go away"), UserError, "HTTP 403: go away"),
        (Reply(503, b""), Reply(404, b""), PixartError, "HTTP 503 after 3 tries"),
        (Reply(0), Reply(405, b""), PixartError, "after 3 tries"),
    ],
)  # fmt: skip
def test_what_is_wrong_for_every_image_stops_the_run_with_one_line(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch,
    reply: Reply | None, models: Reply | None, error: type[PixartError], message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    endpoint = Endpoint(lambda asked, _: reply or describe(asked))
    endpoint.models = models or endpoint.models
    with serving(endpoint):
        with pytest.raises(error, match=message) as caught:
            run_caption(step_for(data, endpoint, api_retries=2), tmp_path / "out", Silent())
        assert "\n" not in str(caught.value)
        assert KEY not in str(caught.value)
        if error is UserError:
            assert type(caught.value) is UserError
        assert len(endpoint.asked) <= 4 * 3
        endpoint.reply, endpoint.models = lambda asked, _: describe(asked), Endpoint().models
        assert run_caption(step_for(data, endpoint), tmp_path / "out", Silent())["failed"] == 0


def test_nobody_there_is_said_before_any_image_is_sent(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatServer, "describe", lambda *_: pytest.fail("sent an image"))
    with socket.socket() as deaf:  # a port that nobody else can take and nobody answers at
        deaf.bind(("127.0.0.1", 0))
        step = step_for(data, Endpoint(base=f"http://127.0.0.1:{deaf.getsockname()[1]}/v1"))
        with pytest.raises(UserError, match=r"api_base: http://127.* cannot be reached \(.*refused"):
            run_caption(step, tmp_path / "out", Silent())


def test_flags_retries_and_seeds_are_those_of_the_image(tmp_path: Path, data: Path) -> None:
    def reply(asked: Asked, _: int) -> Reply:
        if "seed" not in asked.body:
            kinds = ["I'm sorry, but I can't see it.", "A good one.", "", "It goes on and"]
            kind = kinds[int(asked.image, 16) % 4]
            return answer(kind, "length" if kind.endswith("and") else "stop")
        return answer(f"Now it is good, {asked.body['seed']} says.")

    with serving(Endpoint(reply)) as endpoint:
        run_caption(step_for(data, endpoint), tmp_path / "plain", Silent())
        plain = read_captions(tmp_path / "plain")
        for name, concurrency in (("one", 1), ("four", 4)):
            step = step_for(data, endpoint, retry_flagged=2, concurrency=concurrency)
            run_caption(step, tmp_path / name, Silent())
    assert {flag for row in plain.values() for flag in row.flags} == {"refusal", "empty", "truncated"}
    assert (tmp_path / "one" / CAPTIONS).read_bytes() == (tmp_path / "four" / CAPTIONS).read_bytes()
    rows = read_captions(tmp_path / "one")
    assert {row.id: row.attempt for row in rows.values()} == {i: bool(r.flags) for i, r in plain.items()}
    sampled = [asked.body for asked in endpoint.asked if "seed" in asked.body]
    assert all(body["temperature"] == 0.7 for body in sampled)
    seeds = {body["seed"] for body in sampled}
    assert len(seeds) == sum(row.attempt for row in rows.values())  # the same in both runs, one an image
    assert all(caption_flags(row.caption) == row.flags == () for row in rows.values())


def test_running_into_the_limit_is_truncated_even_at_the_end_of_a_sentence(
    tmp_path: Path, data: Path
) -> None:
    with serving(Endpoint(lambda *_: answer("One sentence.", "length"))) as endpoint:
        run_caption(step_for(data, endpoint, limit=1), tmp_path / "out", Silent())
    assert [row.flags for row in read_captions(tmp_path / "out").values()] == [("truncated",)]


def test_the_key_goes_to_the_server_and_nowhere_else(tmp_path: Path, data: Path) -> None:
    def reply(asked: Asked, times: int) -> Reply:
        # Servers that repeat the key in their errors exist.
        return Reply(400, {"error": {"message": f"{asked.headers['Authorization']} may not"}})

    with serving(Endpoint(reply)) as endpoint:
        command = [
            sys.executable, "-c", "from pixart_cli.app import main; main()", "caption", "--data", str(data),
            "--api-base", endpoint.base, "--captioner", "vlm", "--output", "out", "--json",
            "max_bad_fraction=1", "api_key_env=MY_KEY",
        ]  # fmt: skip
        root = Path(__file__).parents[1]
        environment = os.environ | {"MY_KEY": f" {KEY}\n", "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
        runs = [
            subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path, env=environment)
            for more in (["--dry-run"], [])
        ]
    assert [done.returncode for done in runs] == [0, 0], runs
    assert json.loads(runs[1].stdout)["failed"] == IMAGES
    assert {asked.headers["Authorization"] for asked in endpoint.asked} == {f"Bearer {KEY}"}
    written = b"".join(file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file())
    printed = "".join(done.stdout + done.stderr for done in runs)
    assert KEY not in printed
    assert KEY.encode() not in written
    assert b"HTTP 400: Bearer *** may not" in written


def test_a_key_in_the_address_or_none_at_all_is_refused_without_showing_it(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for base in (f"http://user:{KEY}@host/v1", f"http://host/v1?key={KEY}"):
        with pytest.raises(ValueError, match="put the key into the variable of api_key_env"):
            CaptionStep(data="x", api_base=base)
    with serving(Endpoint()) as endpoint:
        with pytest.raises(UserError, match="the environment has no variable NO_SUCH_KEY"):
            run_caption(step_for(data, endpoint, api_key_env="NO_SUCH_KEY"), tmp_path / "out", Silent())
        monkeypatch.setenv("OPENAI_API_KEY", "two\nlines")
        with pytest.raises(UserError, match="no header can carry") as caught:
            run_caption(step_for(data, endpoint), tmp_path / "out", Silent())
    assert "lines" not in str(caught.value)
    assert not endpoint.asked
