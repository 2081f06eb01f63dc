"""The proof that a killed training continues exactly: it finds what is exact, and what is not."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stores import write_tiny_store
from training_ranks import Launcher

from pixart_cli import verify_resume as command
from pixart_cli.app import main
from pixart_core.artifacts.card import Card
from pixart_core.artifacts.seal import seal
from pixart_core.errors import PixartError, UserError
from pixart_core.progress import Silent
from pixart_core.recipe.training import ModelOptions, MuonOptions, TrainStep
from pixart_core.training import verify
from pixart_core.training.certificate import CERTIFICATE
from pixart_core.training.run import STATES
from pixart_core.training.state import saved_states
from pixart_core.training.verify import kill_places, shortened, verify_resume

OPTIONS = {
    "model": ModelOptions(num_layers=1, num_attention_heads=2, attention_head_dim=8, sample_size=8),
    "max_train_steps": 40,
    "global_batch_size": 8,
    "micro_batch_size": 2,
    "learning_rate": 1e-3,
    "lr_warmup_steps": 2,
    "optimizer": MuonOptions(),
    "max_grad_norm": 1.0,
    "ema_decay": 0.9,
    "page": False,
}


@pytest.fixture(scope="module")
def launcher() -> Iterator[Launcher]:
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def step(tmp_path_factory) -> TrainStep:
    return TrainStep(features=str(write_tiny_store(tmp_path_factory.mktemp("store") / "features")), **OPTIONS)


class Sitting:
    """Trainings in processes forked from one that has imported everything.

    `spoil` is done to a training's output, and the answer of a sitting, before the next one.
    """

    def __init__(self, launcher: Launcher, count: int = 1, spoil=lambda output: None) -> None:
        self.launcher, self.count, self.spoil = launcher, count, spoil

    def __call__(self, step: TrainStep, output: Path, environment: Mapping[str, str]) -> str | None:
        answer = self.launcher(step, output, self.count, environ=dict(environment))
        self.spoil(output)
        return str(answer["ranks"]) if any(answer["codes"]) else None


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_at_every_kind_of_place_it_ends_bit_identical(tmp_path, launcher, step) -> None:
    output = tmp_path / "run"
    launcher(step.model_copy(update={"max_train_steps": 2}), output, 1)  # a run that is there already
    before = content(output)
    certificate = verify_resume(step, output, Sitting(launcher), Silent(), steps=10, kills=5)
    assert certificate["identical"], certificate["differences"]
    assert [kill["point"] for kill in certificate["kills"]] == [
        "updated", "saving", "saved", "micro_batch", "publishing",
    ]  # fmt: skip
    # Before the first state from the start; inside a save from the state before; else from the newest.
    assert [kill["continued_at"] for kill in certificate["kills"]] == [0, 2, 6, 6, 10]
    assert {"model", "ema", "optimizer", "counters", "published weights", "log", "data order"} <= set(
        certificate["compared"]
    )
    after = content(output)
    assert json.loads(after.pop(CERTIFICATE))["verdict"] == certificate["verdict"]
    assert after == before


OTHERS = {
    "came, routed, bf16": {
        "optimizer": {"kind": "came"},
        "token_routing": {"start_block": 1, "off_for_last": 0.4},
        "mixed_precision": "bf16",
        "gradient_checkpointing": "selective",
    },
    "8-bit, cosine, min-SNR": {
        "optimizer": {"kind": "adamw8bit"},
        "lr_scheduler": "cosine",
        "loss_weighting": "min_snr",
        "gradient_checkpointing": "full",
    },
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_other_ways_of_training_continue_exactly_too(tmp_path, launcher, step, changes) -> None:
    model = ModelOptions(num_layers=3, num_attention_heads=2, attention_head_dim=8, sample_size=8)
    other = TrainStep(**(OPTIONS | {"features": step.features, "model": model} | changes))
    certificate = verify_resume(other, tmp_path / "run", Sitting(launcher), Silent(), steps=5, kills=2)
    assert certificate["identical"], certificate["differences"]


def test_two_processes_are_killed_and_continued_together(tmp_path, launcher, step) -> None:
    sitting = Sitting(launcher, 2)
    certificate = verify_resume(step, tmp_path / "run", sitting, Silent(), steps=3, kills=1, processes=2)
    assert certificate["identical"], certificate["differences"]
    assert [kill["continued_at"] for kill in certificate["kills"]] == [2]
    assert certificate["recipe"]["shortened"]["max_train_steps"] == [40, 3]


def forget_momentum(output: Path) -> None:
    """A continuation that begins with an optimiser which remembers nothing: not exact."""
    for state in saved_states(output / STATES):
        if output.name == "killed" and state.name == "step_00000002":
            file = state / "optimizer.safetensors"
            raw = bytearray(file.read_bytes())
            start = 8 + int.from_bytes(raw[:8], "little")
            raw[start:] = bytes(len(raw) - start)
            file.write_bytes(bytes(raw))
            seal(state)


def test_a_continuation_that_is_not_exact_is_not_blamed_on_the_machine(tmp_path, launcher, step) -> None:
    sitting = Sitting(launcher, spoil=forget_momentum)
    certificate = verify_resume(step, tmp_path / "run", sitting, Silent(), steps=3, kills=1)
    assert not certificate["identical"]
    assert {"model", "ema", "optimizer", "published weights"} <= set(certificate["differences"])
    assert "numbers, by at most" in certificate["differences"]["model"]["first"][0]
    assert "data order" in certificate["compared"]
    assert certificate["differences_of_two_undisturbed_runs"] == {}
    assert "the continuation is not exact" in certificate["verdict"]
    assert json.loads((tmp_path / "run" / CERTIFICATE).read_text())["identical"] is False


class Unsteady(Sitting):
    """No two trainings are alike."""

    def __call__(self, step: TrainStep, output: Path, environment: Mapping[str, str]) -> str | None:
        seed = ["whole", "killed", "again"].index(output.name)
        return super().__call__(step.model_copy(update={"seed": seed}), output, environment)


def test_a_machine_that_never_computes_the_same_twice_is_told(tmp_path, launcher, step) -> None:
    certificate = verify_resume(step, tmp_path / "run", Unsteady(launcher), Silent(), steps=2, kills=1)
    assert not certificate["identical"]
    assert "neither are two undisturbed runs" in certificate["verdict"]


def test_a_training_that_fails_by_itself_is_no_proof_and_leaves_nothing(tmp_path, launcher, step) -> None:
    wrong = step.model_copy(update={"resolution": 999})
    with pytest.raises(PixartError, match=r"failed by itself: .*999"):
        verify_resume(wrong, tmp_path / "run", Sitting(launcher), Silent(), steps=2, kills=1)
    assert not (tmp_path / "run").exists()


def test_the_card_mentions_a_certificate_of_its_recipe_and_no_other(tmp_path, launcher, step) -> None:
    for name, changes in (
        ("same", {}),
        ("longer", {"max_train_steps": 3}),
        ("other", {"learning_rate": 0.1}),
    ):
        output = tmp_path / name
        output.mkdir()
        if name == "same":
            verify_resume(step, output, Sitting(launcher), Silent(), steps=2, kills=1)
        else:
            (output / CERTIFICATE).write_bytes((tmp_path / "same" / CERTIFICATE).read_bytes())
        launcher(step.model_copy(update={"max_train_steps": 2} | changes), output, 1)
        details = Card.read(output, "checkpoint").details
        if name == "other":
            assert "resume_certificate" not in details
        else:
            assert details["resume_certificate"] == {
                "identical": True, "steps": 2, "kills": 1, "processes": 1
            }  # fmt: skip


@given(st.integers(1, 40), st.integers(0, 50), st.integers(1, 3))
def test_every_kill_falls_on_a_step_that_is_still_to_be_done(kills, more, processes) -> None:
    steps = 2 * kills + more
    step = TrainStep(features="x", **(OPTIONS | {"global_batch_size": 12}))
    short = shortened(step, steps, processes)
    places = kill_places(short, kills, processes)
    assert len(places) == kills
    done = 0
    for place in places:
        assert done < place.step <= steps
        if place.point in ("saving", "saved"):
            assert place.step % short.checkpointing_steps == 0
        # What the kill leaves: the state of this step, or the newest one before it.
        whole = place.point in ("saved", "publishing")
        done = (
            place.step if whole else (place.step - 1) // short.checkpointing_steps * short.checkpointing_steps
        )
    with pytest.raises(UserError, match="steps"):
        kill_places(short, steps // 2 + 1, processes)


def test_a_short_recipe_differs_in_length_and_in_what_is_looked_at_only(step) -> None:
    short = shortened(step.model_copy(update={"micro_batch_size": 1}), 6, 2)
    changed = {name for name in TrainStep.model_fields if getattr(short, name) != getattr(step, name)}
    assert changed - TrainStep.unrecorded == {"max_train_steps", "global_batch_size", "micro_batch_size"}
    assert short.global_batch_size == 4
    TrainStep.model_validate(short.model_dump())


RECIPE = """
name: r
steps:
  train:
    command: train
    features: FEATURES
    model: {num_layers: 1, num_attention_heads: 2, attention_head_dim: 8, sample_size: 8}
    max_train_steps: 40
    global_batch_size: 4
    micro_batch_size: 2
"""


def pixart(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_the_command_shows_its_plan_and_ends_with_the_verdict(
    tmp_path, step, launcher, monkeypatch, capsys
) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.replace("FEATURES", str(step.features)))
    monkeypatch.chdir(tmp_path)
    out = str(tmp_path / "out")
    short = ["train", "--recipe", "r.yaml", "--output", out, "--verify-steps", "2", "--verify-kills", "3"]
    assert pixart(*short) == 2
    assert "--verify-resume" in capsys.readouterr().err
    assert pixart(*short, "--verify-resume") == 2
    assert "3 kills need at least 6 steps" in capsys.readouterr().err
    short[-1] = "1"
    whole = [*short, "--verify-resume", "--json"]
    assert pixart(*whole, "--dry-run") == 0
    assert json.loads(capsys.readouterr().out)["kills"] == [{"point": "updated", "step": 2, "nth": 1}]
    assert not (tmp_path / "out").exists()

    spoil = [lambda output: None]
    monkeypatch.setattr(
        command, "_Command", lambda processes: Sitting(launcher, processes, lambda o: spoil[0](o))
    )
    assert pixart(*whole) == 0
    assert json.loads(capsys.readouterr().out)["identical"]
    spoil[0] = lambda output: (output / "log.jsonl").write_text("") if output.name == "killed" else None
    assert pixart(*whole) == 1
    assert not json.loads(capsys.readouterr().out)["identical"]

    monkeypatch.setenv("RANK", "0")
    assert pixart(*whole) == 2
    assert "without a launcher" in capsys.readouterr().err


def test_a_sitting_is_pixart_train_itself(tmp_path, step) -> None:
    run = command._Command(1)
    short = shortened(step, 2, 1)
    told = tmp_path / "told"
    told.mkdir()
    request = verify.Request(told, verify.Place("micro_batch", 1))
    said = run(short, tmp_path / "run", request.environment())
    assert said is not None
    assert '"killed"' in (told / "rank_0.jsonl").read_text()
    assert not saved_states(tmp_path / "run" / STATES)
