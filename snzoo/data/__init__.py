"""Find photos and their labels, read them from files or archives, and decode them to exact pixels.

The modules build on one another in this order: ``photos`` decides which files are photos,
``layouts`` finds out how a data set is stored, ``labels`` determines the class of each photo, and
``samples`` returns the labeled photos. ``sources``, ``archives`` and ``parquet`` read their bytes.
``decode``, ``pixels`` and ``batches`` turn bytes into batches of pixels. ``augment`` and
``training_batches`` do so for training.
"""

from snzoo.data.photos import find_images, is_image

__all__ = ["find_images", "is_image"]
