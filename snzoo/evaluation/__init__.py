"""Labeled images and networks → accuracies, beside the published ones."""

from snzoo.evaluation.accuracy import Accuracy
from snzoo.evaluation.network import Network, best_classes, choose_device
from snzoo.evaluation.run import Evaluation, evaluate

__all__ = ["Accuracy", "Evaluation", "Network", "best_classes", "choose_device", "evaluate"]
