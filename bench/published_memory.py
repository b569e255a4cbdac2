"""The published memory figures beside ours: which registered model, size and batch each row of the tables means.

The rows name steps, batch, width and layers; the registered models have sizes of the same numbers.  A row is compared
with ours only at exactly its configuration; boosting and chronos models are no registered ones, and have none.
"""

from dataclasses import dataclass

from tsexport.bench.tables import PublishedEstimateRow, load_tables

_MEANT = {
    ("lstm", "60 steps, batch 256, hidden 64, 2 layers, 26 features"): ("lstm", "small", 256),
    ("lstm", "60, 256, 128, 2, 26"): ("lstm", "medium", 256),
    ("lstm", "120, 512, 256, 4, 26"): ("lstm", "large", 512),
    ("transformer", "256 steps, batch 32, width 128, 4 heads, 2 layers"): ("itransformer", "small", 32),
    ("transformer", "512, 16, 256, 8, 4"): ("itransformer", "medium", 16),
    ("transformer", "512, 8, 512, 16, 8"): ("itransformer", "large", 8),
    ("cnn", "60 steps, batch 64, 32 filters, 2 blocks, 5 features"): ("inception-time", "small", 64),
    ("cnn", "60, 64, 128, 4, 5"): ("inception-time", "medium", 64),
    ("cnn", "120, 128, 256, 8, 5"): ("inception-time", "large", 128),
}
MB = 1_000_000


@dataclass(frozen=True)
class PublishedMemory:
    """One published figure: what it means here, None where no registered model is meant."""

    row: PublishedEstimateRow
    model: str | None
    size: str | None
    batch: int | None

    @property
    def claimed_bytes(self) -> float:
        return self.row.claimed_mb * MB

    def misses_by(self, own_bytes: float) -> float:
        """Return how many times the claimed figure is too large, or too small: never below 1."""
        ratio = self.claimed_bytes / own_bytes
        return max(ratio, 1 / ratio)


def published_memory() -> tuple[PublishedMemory, ...]:
    """Return every published figure, in the order of the tables."""
    found = []
    for row in load_tables().published_estimate:
        model, size, batch = _MEANT.get((row.model, row.config), (None, None, None))
        found.append(PublishedMemory(row, model, size, batch))
    return tuple(found)
