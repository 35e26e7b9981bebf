"""A day of the future was published as the only release: one command goes back, online features included."""

import pytest

from feature_repo.materialise import materialise
from grasp.manifest import manifest_in_force
from grasp.versions import Versions
from serving.lookup.online_store import FeastUserStore
from serving.releases.manage import restore_day
from serving.releases.publication import choose_model, publish

DAY, NEXT, FAR_DAY = "1998-03-01", "1998-03-02", "2998-12-31"

pytestmark = pytest.mark.integration


def test_restore_day_goes_back_to_a_day_that_has_no_release(two_days, settings_with):
    two_days.write_day(FAR_DAY, users=["u1", "u2", "u3", "u9"])
    wrong = settings_with(future_days=True, now="2999-01-01T00:00:00Z")
    version = Versions(wrong).feature
    materialise(wrong, version, FAR_DAY)
    only_release = publish(wrong, FAR_DAY, choose_model(wrong, None, None))
    assert FeastUserStore(wrong, only_release).get("u9") is not None

    settings = settings_with(now="1998-03-03T00:00:00Z")
    assert not materialise(settings, version, DAY)
    assert publish(settings, DAY, choose_model(settings, None, None)) == only_release
    restored = restore_day(settings, DAY)

    assert (restored.day, manifest_in_force(settings.releases)) == (DAY, restored)
    users = FeastUserStore(settings, restored)
    assert users.get("u1").description == f"u1 on {DAY}"
    assert users.get("u9") is None
    assert materialise(settings, version, NEXT)
    assert publish(settings, NEXT, choose_model(settings, None, None)).day == NEXT
