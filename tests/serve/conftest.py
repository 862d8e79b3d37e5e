"""A server for all tests of the API, and what it serves."""

import pytest

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("llguidance", reason="needs the extra serve")
pytest.importorskip("openai", reason="needs the extra test")

from serve_toys import Background, drawing_toy, embedding_toy, reading_toy

from chiasm.mllm.config import CrossAttentionConfig
from chiasm.serve.limits import Limits


@pytest.fixture(scope="session")
def toys(tmp_path_factory):
    return {
        "draws": drawing_toy(),
        "reads": reading_toy(tmp_path_factory.mktemp("llama")),
        "embeds": embedding_toy(),
    }


@pytest.fixture(scope="session")
def more_toys(tmp_path_factory):
    """Models whose caches hold more than keys and values."""
    cross = CrossAttentionConfig(before=(1,), heads=2)
    return {
        "draws-2d": drawing_toy(rope="2d"),
        "reads-across": reading_toy(tmp_path_factory.mktemp("across"), cross),
    }


@pytest.fixture(scope="session")
def running(toys):
    limits = Limits(body=3_000_000, pixels=1_000_000, images=4, tokens=64)
    with Background(toys, limits, slots=6, waiting=64) as found:
        yield found


@pytest.fixture(scope="session")
def client(running):
    return running.client()
