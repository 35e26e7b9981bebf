"""An embeddings server as encoder. A new Milvus collection gets the alias only with good recall."""

import threading
import traceback
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grasp import tables
from spark_jobs.embed_descriptions import require_recall
from spark_jobs.models.encoder_http import EncoderServer, OpenAIEncoder, load_server_encoder


def server(model_server, **changed):
    return EncoderServer(**({"url": model_server.url, "model": "test-encoder", "batch_size": 2} | changed))


def test_vectors_come_in_the_order_of_the_texts_and_of_unit_length(model_server):
    encoder = OpenAIEncoder(server(model_server))
    vectors = encoder.encode(["jazz", "rock", "folk"])

    assert vectors.shape == (3, 8)
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    assert np.allclose(vectors[2], encoder.encode(["folk"])[0])
    assert not np.allclose(vectors[0], vectors[1])


def test_one_encoder_serves_a_process(model_server):
    assert load_server_encoder(server(model_server)) is load_server_encoder(server(model_server))


def test_a_server_that_is_not_there_names_the_setting():
    encoder = OpenAIEncoder(EncoderServer("http://127.0.0.1:9/v1", "test-encoder", 2, max_attempts=1))

    with pytest.raises(ValueError, match=r"GRASP_ENCODER_URL gave no vectors: connection$"):
        encoder.encode(["jazz"])


def test_a_web_page_instead_of_vectors_is_reported():
    class Page(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<html>Welcome</html>")

    with HTTPServer(("127.0.0.1", 0), Page) as website:
        threading.Thread(target=website.handle_request, daemon=True).start()
        encoder = OpenAIEncoder(EncoderServer(f"http://127.0.0.1:{website.server_port}", "test-encoder", 2))
        with pytest.raises(ValueError, match=r"GRASP_ENCODER_URL gave no vectors: .* not JSON"):
            encoder.encode(["jazz"])


def test_a_key_in_a_server_error_is_not_logged(model_server, monkeypatch):
    monkeypatch.setenv("GRASP_ENCODER_API_KEY", "very-secret")
    model_server.script(default={"kind": "status", "status": 401})
    encoder = OpenAIEncoder(server(model_server, max_attempts=1))

    with pytest.raises(ValueError, match=r"gave no vectors: rejected \(status 401\)$") as raised:
        encoder.encode(["jazz"])
    assert "very-secret" not in "".join(traceback.format_exception(raised.value))


def test_a_key_with_invalid_characters_is_refused_and_not_shown(model_server, monkeypatch):
    monkeypatch.setenv("GRASP_ENCODER_API_KEY", "very-secret\u00df")

    with pytest.raises(ValueError, match=r"^GRASP_ENCODER_API_KEY holds characters") as raised:
        OpenAIEncoder(server(model_server))
    assert "very-secret" not in str(raised.value)


class Store:
    """Returns fixed search results."""

    def __init__(self, hits):
        self.hits = hits

    def search(self, name, queries, k):
        return [self.hits for _ in queries]


@pytest.fixture
def partition(tmp_path):
    vectors = np.eye(12, dtype=np.float32)[:, :8] + 0.1
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    columns = {"item_id": [f"{row}" for row in range(12)], "semantic_embedding": list(vectors)}
    pq.write_table(pa.table(columns | {"description_hash": [""] * 12}), tmp_path / "part.parquet")
    return tmp_path, vectors


def test_a_collection_with_good_recall_gets_the_alias(partition):
    folder, vectors = partition
    cosines = sorted((float(vectors[3] @ each) for each in vectors), reverse=True)[:10]
    hits = [(f"{row}", cosine) for row, cosine in enumerate(cosines)]

    require_recall(Store(hits), "new", folder, tables.ITEM_EMBEDDING, {"3": vectors[3]})


def test_a_collection_with_poor_recall_does_not_get_the_alias(partition):
    folder, vectors = partition
    hits = [(f"{row}", 0.01) for row in range(10)]

    with pytest.raises(ValueError, match=r"finds 0 of 10 nearest vectors.*drop the collection"):
        require_recall(Store(hits), "new", folder, tables.ITEM_EMBEDDING, {"3": vectors[3]})
