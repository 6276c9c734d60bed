"""Find photos and their labels, read them from files or archives, and decode them to exact pixels.

In reading order: ``photos`` (which files are photos), ``layouts`` (what lies at a path),
``labels`` (the class of each photo), ``samples`` (the labeled photos), ``sources``, ``archives``
and ``parquet`` (where they are read from), ``decode``, ``pixels`` and ``batches``.
"""

from snzoo.data.photos import ClassFolders, find_images, is_image, list_class_folders

__all__ = ["ClassFolders", "find_images", "is_image", "list_class_folders"]
