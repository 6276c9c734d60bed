"""Labelled images and networks → accuracies, beside the published ones."""

from snzoo.evaluate.accuracy import Accuracy
from snzoo.evaluate.network import Network, best_classes, choose_device
from snzoo.evaluate.run import Evaluation, evaluate

__all__ = ["Accuracy", "Evaluation", "Network", "best_classes", "choose_device", "evaluate"]
