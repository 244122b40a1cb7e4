"""Which rows of a shard are refined together, and their results in the order of the rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from more.data.seeds import decode_seed
from more.data.shards.reader import ShardSet
from more.data.shards.writer import ShardWriter

if TYPE_CHECKING:
    from more.refine.shard import ShardSpec


class Rows:
    """Finished rows of a shard, made in any order; `write` hands one to the shard's writer."""

    def __init__(self) -> None:
        self.held: dict[str, tuple[tuple, dict[str, bytes]]] = {}

    def add(self, image_id: str, *values: Any, **payloads: bytes) -> None:
        """As `ShardWriter.add`."""
        self.held[image_id] = values, payloads

    def write(self, image_id: str, writer: ShardWriter) -> None:
        """Append the row to the shard and forget it."""
        values, payloads = self.held.pop(image_id)
        writer.add(image_id, *values, **payloads)


def lots(spec: ShardSpec, seeds: ShardSet) -> list[list[int]]:
    """Rows to refine together: of one image size and one number of labels.

    Single rows where nothing is gained, and after a death of a worker, to find its image.
    """
    rows = [seeds.index_of(image_id) for image_id in spec.tried]
    if spec.how.engine != "lattice" or spec.batch == 1 or spec.skip:
        return [[row] for row in rows]
    alike: dict[tuple[int, ...], list[int]] = {}
    for row in rows:
        size = tuple(int(side) for side in seeds.sizes[row])
        alike.setdefault((*size, _labels(seeds, row)), []).append(row)
    return [group[start:start + spec.batch] for group in alike.values()
            for start in range(0, len(group), spec.batch)]


def _labels(seeds: ShardSet, row: int) -> int:
    """Number of labels of a seed, background included; 0 where it cannot be read."""
    try:
        keys = decode_seed(seeds.blob("seed", row)).keys
    except Exception:  # reported when its turn comes
        return 0
    return len(keys) + (not len(keys) or keys[0] != 0)
