"""Attribute binding (color, shape, texture): the answers of BLIP-VQA about every image, cached."""

from collections.abc import Sequence
from concurrent.futures import Executor

from pixart_core.evaluation.caches import Caches
from pixart_core.evaluation.compbench.blip import BlipVqa, product, question_of
from pixart_core.evaluation.compbench.language import Reader
from pixart_core.evaluation.compbench.prompts import Prompt
from pixart_core.evaluation.compbench.summary import Protocol
from pixart_core.evaluation.compbench.work import Asker, Item, Work
from pixart_core.evaluation.pictures import Picture

OFFICIAL_PHRASES = (8, 2)  # since December 2023, and before


def attribute_protocol(blip: BlipVqa, noun_phrases: int, reader: Reader) -> Protocol:
    """The id of what this model, this reader and so many questions measure."""
    name = f"compbench/{blip.name}-np{noun_phrases}{reader.suffix}@1"
    return Protocol(name, blip.official and not reader.suffix and noun_phrases in OFFICIAL_PHRASES)


class AttributeAsker(Asker):
    """Asks BLIP-VQA whether each noun phrase is there, of an image's own prompt and of the other one."""

    def __init__(self, work: Work, blip: BlipVqa, reader: Reader, noun_phrases: int, caches: Caches) -> None:
        super().__init__(work)
        self._blip = blip
        self._questions = {
            prompt: tuple(question_of(phrase) for phrase in sentence.noun_phrases[:noun_phrases])
            for prompt, sentence in work.read_all(reader).items()
        }
        self._answers = caches.answers(f"{blip.name}-{blip.weights}")

    def has_answers(self, item: Item, digest: str) -> bool:
        return all((digest, text) in self._answers for text in self._asked(item))

    def ask(self, batch: Sequence[tuple[Item, Picture]], threads: Executor) -> None:
        asked = [self._asked(item) for item, _ in batch]
        found = self._blip.answers([picture.image for _, picture in batch], asked)
        self._answers.append(
            [
                (picture.digest, text, answer)
                for (_, picture), texts, values in zip(batch, asked, found, strict=True)
                for text, answer in zip(texts, values, strict=True)
            ]
        )

    def refresh(self) -> None:
        self._answers.refresh()

    def score(self, item: Item, prompt: Prompt) -> tuple[float, tuple[str, ...]]:
        """See `work.Score`."""
        questions, digest = self._questions[prompt], self.digest_of(item)
        values = [float(self._answers.answer(digest, text)) for text in questions]
        reasons = [f"{text} {value:.2f}" for text, value in zip(questions, values, strict=True)]
        return product(values), tuple(reasons) or ("no question could be asked",)

    def _asked(self, item: Item) -> list[str]:
        return list(dict.fromkeys(text for prompt in item.prompts for text in self._questions[prompt]))
