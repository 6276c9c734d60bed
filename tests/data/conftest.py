"""What tests of layouts share."""

import pytest


@pytest.fixture
def touch(tmp_path):
    """Makes empty files below tmp_path, which it returns."""

    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make
