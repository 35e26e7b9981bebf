from dataclasses import replace

import pytest

from training.model.config import RankerConfig

CONFIG = RankerConfig(num_items=12, semantic_size=6, width=8)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"mode": "prefixed"}, "mode 'prefixed' is not one of prefix, full, gate, cross"),
        ({"num_heads": 3}, "width 8 is not a multiple of num_heads 3"),
        ({"num_heads": 2, "context_width": 7}, "context_width 7 is not a multiple of num_heads 2"),
        ({"num_items": 0}, "must be positive"),
    ],
)
def test_an_invalid_config_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **changed)


@pytest.mark.parametrize(
    ("changed", "is_causal"),
    [
        ({}, True),
        ({"mode": "full"}, False),
        ({"mode": "full", "enhancer": "none"}, True),  # it has no attention that reads ahead
        ({"backbone": "gru4rec", "variant": "legacy"}, True),
        ({"variant": "legacy"}, False),
        ({"backbone": "bert4rec"}, False),
    ],
)
def test_what_reads_ahead_is_not_causal(changed, is_causal):
    assert replace(CONFIG, **changed).is_causal is is_causal
