"""From photos to class probabilities: transforms, and prediction in batches."""

from snzoo.inference.bulk import write_predictions
from snzoo.inference.classifier import Classifier, Prediction, load_classifier
from snzoo.inference.network import Network, TopK, choose_device, rank_classes
from snzoo.inference.predict import iter_predictions, predict
from snzoo.inference.tables import read_predictions
from snzoo.inference.transform import Transform, create_transform

__all__ = [
    "Classifier",
    "Network",
    "Prediction",
    "TopK",
    "Transform",
    "choose_device",
    "create_transform",
    "iter_predictions",
    "load_classifier",
    "predict",
    "rank_classes",
    "read_predictions",
    "write_predictions",
]
