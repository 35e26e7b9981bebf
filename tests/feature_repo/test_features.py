"""Every feature view has an owner, a description, an age limit and exactly the columns of its table."""

from dataclasses import replace
from datetime import timedelta

import pandas as pd
import pytest

from grasp import tables
from grasp.days import end_of
from grasp.versions import Versions, feature_service

VERSION = "v1_0a1b2c3d"
TABLES = {table.name: table for table in (tables.USER_FEATURES, tables.ITEM_FEATURES)}


@pytest.fixture
def views(settings):
    from feast import FeatureView

    from feature_repo.features import definitions

    return {view.name: view for view in definitions(settings, VERSION, "duckdb") if isinstance(view, FeatureView)}


def test_there_is_one_view_per_feature_table(views):
    assert views.keys() == TABLES.keys()


@pytest.mark.parametrize("name", TABLES)
def test_a_view_has_owner_description_and_age_limit(views, name):
    view = views[name]
    assert view.owner
    assert view.description == TABLES[name].meaning
    assert view.ttl == timedelta(days=4)  # 48 h after the next refresh, in whole days
    assert view.tags["feature_version"] == VERSION


@pytest.mark.parametrize("name", TABLES)
def test_a_view_holds_every_column_of_its_table_with_type_and_meaning(views, name):
    from feature_repo.features import FEAST_TYPES

    columns = {column.name: column for column in TABLES[name].columns if column.name != "event_timestamp"}
    fields = {field.name: field for field in views[name].schema}
    assert fields.keys() == columns.keys()
    assert {field.name: field.dtype for field in fields.values()} == {
        column.name: FEAST_TYPES[column.type] for column in columns.values()
    }
    key = TABLES[name].key[0]
    assert all(field.description == columns[field.name].meaning for field in fields.values() if field.name != key)


def test_a_view_reads_the_folder_of_its_version_alone(views, settings):
    path = views["user_features"].batch_source.path
    assert path == str(settings.lake / "user_features" / f"version={VERSION}")


def test_feast_reads_a_lake_below_a_folder_of_any_name(small_lake, settings_with, tmp_path):
    from feature_repo.materialise import open_for_writing

    settings = settings_with(lake=str(tmp_path / "it's #1" / "lake"))
    replace(small_lake, settings=settings).write_features("1998-03-01")
    store = open_for_writing(settings, Versions(settings).feature, apply=True)
    asked = pd.DataFrame({"item_id": ["i1"], "event_timestamp": [end_of("1998-03-02")]})
    known = store.get_historical_features(asked, ["item_features:description"]).to_df()
    assert known["description"].to_list() == ["i1 on 1998-03-01"]


def test_the_service_asks_for_the_user_only(settings):
    from feast import FeatureService

    from feature_repo.features import RANKER_FEATURES, definitions

    (service,) = [each for each in definitions(settings, VERSION, "duckdb") if isinstance(each, FeatureService)]
    assert service.name == feature_service(VERSION)
    (projection,) = service.feature_view_projections
    assert projection.name == "user_features"
    assert {feature.name for feature in projection.features} == set(RANKER_FEATURES)


def test_an_unsupported_offline_store_is_refused_by_name(settings):
    from feature_repo.features import definitions

    with pytest.raises(ValueError, match="offline store 'file': GRASP_FEATURE_STORE_YAML"):
        definitions(settings, VERSION, "file")
