"""Attribute binding (color, shape, texture): the answers of BLIP-VQA about every image, cached."""

from pathlib import Path

from pixart_core.evaluation.compbench.answer_cache import AnswerCache
from pixart_core.evaluation.compbench.blip import BlipVqa, product, question_of
from pixart_core.evaluation.compbench.language import Reader
from pixart_core.evaluation.compbench.prompts import Prompt
from pixart_core.evaluation.compbench.summary import Protocol
from pixart_core.evaluation.compbench.work import Item, Score, Work
from pixart_core.progress import Progress

OFFICIAL_PHRASES = (8, 2)  # since December 2023, and before


def attribute_protocol(blip: BlipVqa, noun_phrases: int, reader: Reader) -> Protocol:
    """The id of what this model, this reader and so many questions measure."""
    name = f"compbench/{blip.name}-np{noun_phrases}{reader.suffix}@1"
    return Protocol(name, blip.official and not reader.suffix and noun_phrases in OFFICIAL_PHRASES)


def attribute_scores(
    work: Work,
    blip: BlipVqa,
    reader: Reader,
    noun_phrases: int,
    cache: Path,
    batch_size: int,
    progress: Progress,
) -> Score:
    """Ask about every image what is not in the cache yet; then score from the answers.

    Raises:
        UserError: an image is gone or damaged.
        PixartError: the disk is full; the answers of earlier batches are kept.
    """
    read = work.read_all(reader)
    questions = {
        prompt: tuple(question_of(phrase) for phrase in sentence.noun_phrases[:noun_phrases])
        for prompt, sentence in read.items()
    }
    answers = AnswerCache(cache, f"{blip.name}-{blip.weights}")
    digests: dict[int, str] = {}
    task = f"BLIP-VQA {work.category}"
    progress.start(task, len(work.items))
    for batch in work.batches(batch_size):
        asked = [
            list(dict.fromkeys(text for prompt in item.prompts for text in questions[prompt]))
            for item, _, _ in batch
        ]
        digests |= {item.index: digest for item, digest, _ in batch}
        known = all(
            (digest, text) in answers
            for (_, digest, _), texts in zip(batch, asked, strict=True)
            for text in texts
        )
        if not known:
            pictures = [work.decode(item, data) for item, _, data in batch]
            found = blip.answers(pictures, asked)
            answers.append(
                [
                    (digest, text, answer)
                    for (_, digest, _), texts, values in zip(batch, asked, found, strict=True)
                    for text, answer in zip(texts, values, strict=True)
                ]
            )
        progress.advance(task, len(batch))
    progress.finish(task)

    def score(item: Item, prompt: Prompt) -> tuple[float, tuple[str, ...]]:
        values = [float(answers.answer(digests[item.index], text)) for text in questions[prompt]]
        reasons = [f"{text} {value:.2f}" for text, value in zip(questions[prompt], values, strict=True)]
        return product(values), tuple(reasons) or ("no question could be asked",)

    return score
