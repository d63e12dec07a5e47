"""Three kills of `make chaos`: the disturbed run leaves what the whole one leaves."""

import chaos
import pytest

pytestmark = [pytest.mark.engines, pytest.mark.slow]


def test_three_kills_change_nothing(tmp_path):
    assert len(chaos.compare(tmp_path, kills=3, seed=0, ppo_steps=12)) == 3
