"""List the photos of ``ILSVRC2012_img_train.tar``, a tar of one tar per class, without unpacking.

The outer tar holds ``n01440764.tar`` …, which hold ``n01440764_18.JPEG`` …. Only headers are read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from posixpath import basename

from snzoo.data.archives import Member, list_inner
from snzoo.errors import DataError

CLASS_TAR = re.compile(r"(n\d{8})\.tar", re.ASCII)


def is_nested(members: Sequence[Member]) -> bool:
    """Return whether an archive holds tars that are named by wnids."""
    return any(CLASS_TAR.fullmatch(basename(member.name)) for member in members)


def list_class_tars(members: Sequence[Member]) -> dict[str, Member]:
    """Return a mapping from wnids to the tars of their photos.

    Raises:
        DataError: the archive holds something else, or two tars of a class.
    """
    tars: dict[str, Member] = {}
    for member in members:
        match = CLASS_TAR.fullmatch(basename(member.name))
        if member.is_folder:
            continue
        if not match:
            raise DataError(f"{member} is not named like n01440764.tar, as the other members are")
        if member.flaw or member.zipped:
            reason = member.flaw or "in a zip"
            raise DataError(f"{member} is {reason}; pack the tars themselves in a tar")
        if match[1] in tars:
            raise DataError(f"{member}: it is not the only tar of its class")
        tars[match[1]] = member
    return tars


def list_photos(members: Sequence[Member]) -> list[Member]:
    """Return the photos in the tars of the classes, named ``n01440764/n01440764_18.JPEG``.

    Args:
        members: the members of the outer tar.

    Raises:
        DataError: see :func:`list_class_tars`; or a member of a class's tar is damaged, leaves the
            bounds of this tar, is not a regular file, is not named like a photo of the class, or
            occurs twice.
        OSError: the archive cannot be read.
    """
    photos: dict[str, Member] = {}
    for wnid, tar in list_class_tars(members).items():
        pattern = re.compile(rf"{wnid}_\d+\.JPEG", re.ASCII)
        for member in list_inner(tar):
            name = f"{wnid}/{member.name}"
            if member.flaw:
                raise DataError(f"{tar}: {member.name} is {member.flaw}")
            if not pattern.fullmatch(member.name):
                raise DataError(f"{tar}: {member.name} is not named like {wnid}_18.JPEG")
            if name in photos:
                raise DataError(f"{tar} holds {member.name} twice")
            photos[name] = replace(member, name=name)
    return list(photos.values())
