"""The preallocated cache holds the same as a `DynamicCache`, and is not copied when it grows."""

import copy

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from spark_jobs.models.prefix_cache import batch_cache

NUM_PROMPTS, NUM_HEADS, SIZE = 2, 3, 4


def states(num_prompts, num_tokens):
    return torch.randn(num_prompts, NUM_HEADS, num_tokens, SIZE)


def shared_cache(*layers):
    """Five tokens of one prompt in each layer."""
    cache = DynamicCache()
    cache.layers = list(layers)
    for number in range(len(layers)):
        cache.update(states(1, 5), states(1, 5), number)
    return cache


def test_it_holds_the_same_tokens_as_a_dynamic_cache():
    shared = shared_cache(DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=4))
    repeated = copy.deepcopy(shared)
    repeated.batch_repeat_interleave(NUM_PROMPTS)
    cache = batch_cache(shared, NUM_PROMPTS, 4)

    for num_tokens in (3, 1):  # the rest of a prompt, then the first token of an answer
        for layer in (0, 1):
            keys, values = states(NUM_PROMPTS, num_tokens), states(NUM_PROMPTS, num_tokens)
            expected = repeated.update(keys, values, layer)
            found = cache.update(keys, values, layer)
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
            assert cache.get_seq_length(layer) == repeated.get_seq_length(layer)
    assert shared.get_seq_length() == 5  # what the next batch begins with


def test_adding_a_token_does_not_copy_the_earlier_ones():
    cache = batch_cache(shared_cache(DynamicLayer()), NUM_PROMPTS, 2)
    places = set()
    for _ in range(2):
        keys, values = cache.update(states(NUM_PROMPTS, 1), states(NUM_PROMPTS, 1), 0)
        places.add((keys.data_ptr(), values.data_ptr()))
    assert len(places) == 1
