"""When a training saves and ends by the clock: so that its time is over before the cluster's is."""

import time

from pixart_core.launch import began, boot_seconds
from pixart_core.recipe.saving import duration_seconds
from pixart_core.recipe.training import TrainStep


class Clock:
    """Watches `max_train_time` and `checkpointing_minutes`.

    The longest step and the longest save so far are kept in reserve, so that both are done in time.
    """

    def __init__(self, step: TrainStep) -> None:
        self.limit = None if step.max_train_time is None else duration_seconds(step.max_train_time)
        self.interval = None if step.checkpointing_minutes is None else 60 * step.checkpointing_minutes
        now = time.monotonic()
        self.began = now - (boot_seconds() - began())
        self.last_step = self.last_save = now
        self.longest_step = self.longest_save = 0.0

    def stepped(self) -> None:
        """A step is done, with all that belongs to it."""
        now = time.monotonic()
        self.longest_step, self.last_step = max(self.longest_step, now - self.last_step), now

    def saved(self) -> None:
        """A state was saved after the step."""
        now = time.monotonic()
        self.longest_save = max(self.longest_save, now - self.last_step)
        self.last_step = self.last_save = now

    @property
    def is_over(self) -> bool:
        """Whether another step and a save might not be done in time."""
        if self.limit is None:
            return False
        return time.monotonic() - self.began + self.longest_step + self.longest_save >= self.limit

    @property
    def asks_to_save(self) -> bool:
        """Whether the last state is as old as a state may be."""
        return self.interval is not None and time.monotonic() - self.last_save >= self.interval
