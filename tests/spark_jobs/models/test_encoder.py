"""Vectors must have unit length. A folder without an encoder is named in the error."""

import shutil

import numpy as np
import pytest

from spark_jobs.models.encoder import SentenceEncoder, load_encoder, require_unit_vectors


def test_unit_vectors_are_accepted():
    require_unit_vectors(np.array([[0.6, 0.8], [0.0, -1.0005]], dtype=np.float32), ["a", "b"])


@pytest.mark.parametrize("wrong", [[np.nan, 1.0], [np.inf, 0.0], [0.0, 0.0], [0.6, 0.9]])
def test_a_vector_that_is_not_of_unit_length_is_refused_by_id(wrong):
    with pytest.raises(ValueError, match=r"these are not: b \("):
        require_unit_vectors(np.array([[0.6, 0.8], wrong], dtype=np.float32), ["a", "b"])


def test_a_folder_without_an_encoder_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"GRASP_ENCODER={tmp_path} is not a sentence-transformers folder"):
        SentenceEncoder(tmp_path, 8)


@pytest.mark.models
def test_a_corrupt_encoder_is_named(tmp_path, model_folders):
    shutil.copytree(model_folders[1], tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ValueError, match=f"GRASP_ENCODER={tmp_path}/broken holds no usable"):
        SentenceEncoder(tmp_path / "broken", 8)


@pytest.mark.models
def test_the_real_encoder_gives_unit_vectors_in_the_order_of_the_texts_whatever_the_batches(model_folders):
    texts = ["A long film about a farm, its animals and one winter. " * 3, "Jazz.", "A film about animals on a farm."]
    in_one, one_by_one = (load_encoder(model_folders[1], size).encode(texts) for size in (64, 1))
    require_unit_vectors(in_one, texts)
    assert in_one.dtype == np.float32
    np.testing.assert_allclose(in_one, one_by_one, atol=1e-5)
    assert in_one[0] @ in_one[2] > in_one[0] @ in_one[1]
    assert load_encoder(model_folders[1], 64) is load_encoder(model_folders[1], 64)
