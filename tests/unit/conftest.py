"""What tests of archives share."""

import pytest

from tests.unit.image_tools import Unpack, imaged, unpacked


@pytest.fixture(params=[unpacked, imaged], ids=["dir", "image"])
def unpack(request: pytest.FixtureRequest) -> Unpack:
    """The tree that an archive becomes, through either sink."""
    return request.param
