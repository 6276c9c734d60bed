"""Train and finetune networks: recipes as data, restartable, on one device or many."""

from snzoo.training.config import TrainingConfig
from snzoo.training.run import TrainingResult, run_training, train

__all__ = ["TrainingConfig", "TrainingResult", "run_training", "train"]
