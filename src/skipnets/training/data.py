"""The images of a run, as Lightning wants to be handed them."""

from __future__ import annotations

import numpy as np
import pytorch_lightning as pl
from typing_extensions import override

from skipnets.data.dataset import ImageDataset
from skipnets.data.loading import ImageLoader, balanced, training_loader, validation_loader
from skipnets.data.preprocessing import Preprocessing
from skipnets.training.config import ResolvedConfig


class ImageDataModule(pl.LightningDataModule):
    """Batches of training and validation images. Nothing here knows of test images.

    Args:
        train: What to learn from.
        val: What to choose the best epoch on.
        preprocessing: Of the validation images; training shares its size, channels and normalization.
        config: What `prepare` resolved.
        shares: How many parts an epoch is divided into, which the processes share.
    """

    def __init__(
        self,
        train: ImageDataset,
        val: ImageDataset,
        preprocessing: Preprocessing,
        config: ResolvedConfig,
        *,
        shares: int,
    ) -> None:
        super().__init__()
        self.train = train
        self.val = val
        self.preprocessing = preprocessing
        self.config = config
        self.shares = shares
        self._loaders: list[ImageLoader] = []

    @property
    def failures(self) -> dict[str, str]:
        """Name → reason of every image that this process could not decode so far."""
        return {name: reason for loader in self._loaders for name, reason in loader.failures.items()}

    def close(self) -> None:
        """End all worker processes."""
        for loader in self._loaders:
            loader.close()

    @override
    def train_dataloader(self) -> ImageLoader:
        """This process's share of an epoch, in the order that seed and epoch determine."""
        config, trainer = self.config, self._trainer()
        return self._keep(
            training_loader(
                self.train,
                self.preprocessing,
                config.augmentation,
                erasing=config.erasing,
                batch_size=config.batch_size,
                workers=config.workers,
                seed=config.seed,
                sampler=balanced(self.train.labels) if config.imbalance == "balanced-sampling" else None,
                epoch_images=config.epoch_images,
                rank=trainer.global_rank,
                world_size=trainer.world_size,
                shares=self.shares,
            )
        )

    @override
    def val_dataloader(self) -> ImageLoader:
        """This process's share of the validation split: over all processes, every image once."""
        config, trainer = self.config, self._trainer()
        share = np.arange(trainer.global_rank, len(self.val), trainer.world_size)
        return self._keep(
            validation_loader(
                self.val.select(share),
                self.preprocessing,
                batch_size=config.batch_size,
                workers=config.workers,
            )
        )

    def _trainer(self) -> pl.Trainer:
        assert self.trainer is not None
        return self.trainer

    def _keep(self, loader: ImageLoader) -> ImageLoader:
        self._loaders.append(loader)
        return loader
