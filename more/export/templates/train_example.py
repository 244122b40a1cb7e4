"""Train a U-Net on the folder that this file lies in.

    pip install segmentation-models-pytorch
    python train_example.py --epochs 20

A short example to start from: random crops, mirror images, one learning rate. Pixels of value 255
take no part in the loss or the score. `--limit 8 --epochs 1` is a quick try; it runs on a CPU, too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

try:
    import numpy as np
    import segmentation_models_pytorch as smp
    import torch
    from PIL import Image
    from torch.nn import functional
    from torch.utils.data import DataLoader, Dataset
except ImportError as error:
    sys.exit(f"error: {error}\n  fix: pip install segmentation-models-pytorch")

IGNORE = 255
STRIDE = 32  # encoders halve the picture five times
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


class Pairs(Dataset):
    """Images and masks of one split; `crop` pixels square and mirrored by chance, or whole."""

    def __init__(self, root: Path, split: str, limit: int, crop: int = 0):
        self.masks, self.crop = root / "masks", crop
        self.files = {path.stem: path for path in (root / "images").iterdir()}
        ids = (root / "splits" / f"{split}.txt").read_text(encoding="utf-8").split("\n")
        self.ids = [name for name in ids if name][:limit or None]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(self.files[self.ids[i]]) as picture:
            image = torch.from_numpy(np.array(picture.convert("RGB")))
        with Image.open(self.masks / f"{self.ids[i]}.png") as picture:
            mask = torch.from_numpy(np.array(picture)).long()
        image = ((image / 255 - MEAN) / STD).permute(2, 0, 1)
        height, width = (self.crop or -(-side // STRIDE) * STRIDE for side in mask.shape)
        below, right = max(height - mask.shape[0], 0), max(width - mask.shape[1], 0)
        image = functional.pad(image, (0, right, 0, below))
        mask = functional.pad(mask, (0, right, 0, below), value=IGNORE)
        if self.crop:
            top = int(torch.randint(mask.shape[0] - height + 1, ()))
            left = int(torch.randint(mask.shape[1] - width + 1, ()))
            image = image[:, top:top + height, left:left + width]
            mask = mask[top:top + height, left:left + width]
            if torch.rand(()) < 0.5:
                image, mask = image.flip(2), mask.flip(1)
        return image, mask


def train_epoch(model: torch.nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer,
                device: torch.device) -> float:
    """One pass over the images; the mean loss."""
    model.train()
    losses = []
    for image, mask in loader:
        image, mask = image.to(device), mask.to(device)
        if (mask == IGNORE).all():
            continue
        loss = functional.cross_entropy(model(image), mask, ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / max(len(losses), 1)


@torch.no_grad()
def score(model: torch.nn.Module, loader: DataLoader, classes: int, device: torch.device) -> float:
    """Mean IoU over the classes that occur."""
    model.eval()
    table = torch.zeros(classes, classes)
    for image, mask in loader:
        label, kept = model(image.to(device)).argmax(1).cpu(), mask != IGNORE
        pairs = mask[kept] * classes + label[kept]
        table += torch.bincount(pairs, minlength=classes**2).reshape(classes, classes)
    union = table.sum(0) + table.sum(1) - table.diag()
    return (table.diag()[union > 0] / union[union > 0]).mean().item()


def main() -> None:
    """Train, print loss and score of every epoch, save the weights."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=here, help="exported folder [this one]")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--limit", type=int, default=0, help="images per split; 0 = all")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=256, help="pixels, a multiple of 32")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate of AdamW")
    parser.add_argument("--encoder", default="resnet18", help="any encoder of the package")
    parser.add_argument("--weights", default=None, help="imagenet: pretrained, downloaded")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--out", type=Path, default=here / "model.pt")
    args = parser.parse_args()
    if args.crop < STRIDE or args.crop % STRIDE:
        parser.error(f"--crop {args.crop} is not a multiple of {STRIDE}")
    torch.manual_seed(0)
    names = (args.data / "classes.txt").read_text(encoding="utf-8").split("\n")
    classes = 1 + sum(map(bool, names))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train = Pairs(args.data, "train", args.limit, args.crop)
    val = Pairs(args.data, "val", args.limit)
    batches = DataLoader(train, args.batch, shuffle=True, num_workers=args.workers,
                         drop_last=len(train) > args.batch)
    model = smp.Unet(encoder_name=args.encoder, encoder_weights=args.weights, in_channels=3,
                     classes=classes).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.rate)
    print(f"{len(train)} images to train on, {len(val)} to validate, {classes} classes, {device}")
    for epoch in range(1, args.epochs + 1):
        line = f"epoch {epoch}: loss {train_epoch(model, batches, optimizer, device):.4f}"
        if len(val):
            line += f", mIoU {score(model, DataLoader(val), classes, device):.4f}"
        print(line, flush=True)
    torch.save(model.state_dict(), args.out)
    print(f"weights: {args.out}")


if __name__ == "__main__":
    main()
