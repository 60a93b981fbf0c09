"""What the driver tests share is in tests/contracts and tests/drivers/children; its asserts explain themselves too."""

import pytest

pytest.register_assert_rewrite("tests.contracts.snapshotter", "tests.trees")
