"""What networks found in images, kept on disk: every cache of a run is opened once, and shared."""

from pathlib import Path

from pixart_core.evaluation.compbench.answer_cache import AnswerCache
from pixart_core.evaluation.feature_cache import FeatureCache


class Caches:
    """The caches below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._features: dict[str, FeatureCache] = {}
        self._answers: dict[str, AnswerCache] = {}

    def features(self, extractor: str, dimensions: int) -> FeatureCache:
        """Features of the extractor of this id.

        Raises:
            UserError: the folder cannot be used.
        """
        if extractor not in self._features:
            self._features[extractor] = FeatureCache(self.root, extractor, dimensions)
        return self._features[extractor]

    def answers(self, model: str) -> AnswerCache:
        """Answers of the model of this id.

        Raises:
            UserError: the folder cannot be used.
        """
        if model not in self._answers:
            self._answers[model] = AnswerCache(self.root, model)
        return self._answers[model]
