"""The last good rows: how many are kept, and whose are not."""

from dataclasses import replace

from serving.lookup import LastGood


def test_the_users_seen_last_are_kept(user):
    kept = LastGood(2)
    for user_id in ("a", "b", "a", "c"):
        kept.keep("v1", user_id, replace(user, user_id=user_id))

    assert [kept.get("v1", user_id) is not None for user_id in "abc"] == [True, False, True]


def test_a_user_whom_the_store_no_longer_knows_is_forgotten(user):
    kept = LastGood(2)
    kept.keep("v1", "u1", user)
    kept.keep("v1", "u1", None)

    assert kept.get("v1", "u1") is None


def test_rows_of_two_feature_versions_are_not_mixed(user):
    kept = LastGood(2)
    kept.keep("v1", "u1", user)

    assert kept.get("v2", "u1") is None


def test_none_may_be_kept(user):
    kept = LastGood(0)
    kept.keep("v1", "u1", user)

    assert kept.get("v1", "u1") is None
