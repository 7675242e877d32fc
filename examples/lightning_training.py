"""Training with Lightning: diml gives the network, the structural loss and the evaluation; Lightning runs the loop.

    pip install 'diml[train]' lightning
    python lightning_training.py [FOLDER]

FOLDER has one sub-folder of photos for each class; without it, the photos that come with diml are used.
"""

import sys
from pathlib import Path

import lightning
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import diml
from diml.data import load_image
from diml.objectives import build_objective


class Photos(Dataset):
    """Photos in sub-folders by class, as normalised tensors (3, H, W) and class numbers."""

    def __init__(self, paths, preprocess):
        self.paths, self.preprocess = paths, preprocess
        self.names, self.labels = np.unique([path.parent.name for path in paths], return_inverse=True)

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.preprocess(load_image(self.paths[index])), int(self.labels[index])


class StructuralTraining(lightning.LightningModule):
    """An embedder trained with the multi-similarity loss on structural similarities."""

    def __init__(self, embedder, num_classes):
        super().__init__()
        self.embedder = embedder
        self.objective = build_objective(
            "multisimilarity_diml", num_classes=num_classes, embedding_dim=embedder.dim, matcher=embedder.matcher
        )

    def training_step(self, batch, _):
        images, labels = batch
        loss = self.objective(self.embedder(images), labels)
        self.log("loss", loss, batch_size=len(labels), prog_bar=True)
        return loss

    def configure_optimizers(self):
        lr = 1e-3
        head = {"params": self.embedder.head.parameters()}
        return torch.optim.Adam([head, *self.objective.parameter_groups(lr=lr)], lr=lr)


def main(folder=None, epochs=3):
    paths = sorted(Path(folder).glob("*/*.jpg")) if folder else diml.sample_images()
    lightning.seed_everything(0)
    embedder = diml.load_embedder("mobilenetv2_100", head="linear", size=128)
    embedder.backbone.requires_grad_(False)
    photos = Photos(paths, embedder.preprocess)
    model = StructuralTraining(embedder, num_classes=len(photos.names))
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="auto", devices=1, logger=False, enable_checkpointing=False, log_every_n_steps=1
    )
    trainer.fit(model, DataLoader(photos, batch_size=min(64, len(photos)), shuffle=True))
    print(f"loss {float(trainer.callback_metrics['loss']):.3f} after {epochs} epochs")
    embedder.eval().save("lightning-embedder")
    trained = diml.load_embedder("lightning-embedder")
    print("on the training photos:", diml.evaluate_regions(trained.embed(paths), photos.labels, rerank_at=(0, 5)))


if __name__ == "__main__":
    main(*sys.argv[1:])
