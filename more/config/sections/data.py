"""Settings of how images are read and become tensors."""

from __future__ import annotations

from dataclasses import dataclass

from more.config.fields import check_channels, check_deviations, setting


@dataclass(frozen=True)
class DataConfig:
    """How images become tensors."""

    crop: int = setting(448, "side of a training crop in pixels", low=1)
    augment: str = setting("voc", "'voc' (random resized crop), 'coco' (scale, crop, pad) or "
                           "'none'", choices=("voc", "coco", "none"))
    min_area: float = setting(0.32, "smallest share of the image in a crop", above=0, high=1)
    jitter: float = setting(0.8, "probability of colour jitter", low=0, high=1)
    mean: tuple = setting((123.675, 116.28, 103.53), "channel means, 0..255", rule=check_channels)
    std: tuple = setting((58.395, 57.12, 57.375), "channel deviations, 0..255",
                         rule=check_deviations)
    pipeline: str = setting("device", "'device': colours are jittered batch-wise where the network "
                            "runs; 'pil': image by image with Pillow, in the released order",
                            choices=("device", "pil"))
    order: str = setting("auto", "'global': one shuffle over the whole set, as released; 'shards': "
                         "each rank reads whole shards, shuffled in windows; 'auto': 'shards' for "
                         "sets of more than 64 shards", choices=("auto", "global", "shards"))
    window: int = setting(8, "shards that are shuffled with one another, for order='shards'", low=1)
    last_batch: str = setting("drop", "the incomplete batch at an epoch's end: 'drop', or 'carry' "
                              "it into the next epoch", choices=("drop", "carry"))
    workers: int = setting(-1, "loader processes per rank; 0 loads in the trainer, -1: one less "
                           "than the rank has cores, 1 to 8", low=-1)
    prefetch_mb: int = setting(256, "megabytes of finished batches that may wait, per rank", low=1)
    cache: str = setting("", "copy shards to this local folder when first read; '' = read in place",
                         empty_is_off=True)
    quarantine: float = setting(0.0, "share of damaged images to leave out; 0 stops at the first",
                                low=0, high=1)


@dataclass(frozen=True)
class TokensConfig:
    """What frozen blocks make of random views of the images: computed once and kept."""

    views: int = setting(4, "random views of each image that training sees, in turn", low=1)
    gb: float = setting(8.0, "most disk for their tokens; fewer views where it does not suffice, "
                        "and without room for one the blocks are run in every update", low=0)
    folder: str = setting("", "where they are kept, which runs may share; '' = RUN/tokens",
                          empty_is_off=True)
