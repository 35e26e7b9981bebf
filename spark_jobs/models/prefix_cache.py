"""A preallocated key/value cache for a batch of prompts that share their first tokens.

The `DynamicCache` of transformers copies all keys and values of a batch for every new token. With hundreds of shared
tokens, this takes longer than the model itself.
"""

import copy

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer: the shared tokens, copied for each prompt, then space for new tokens."""

    def __init__(self, shared: DynamicLayer, num_prompts: int, num_more: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = shared.dtype, shared.device, True
        self._all_keys = _preallocate(shared.keys, num_prompts, num_more)
        self._all_values = _preallocate(shared.values, num_prompts, num_more)
        self._show(shared.keys.shape[-2])

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        self._all_keys[:, :, start:end] = key_states
        self._all_values[:, :, start:end] = value_states
        self._show(end)
        return self.keys, self.values

    def _show(self, num_tokens: int) -> None:
        self.keys, self.values = self._all_keys[:, :, :num_tokens], self._all_values[:, :, :num_tokens]


def _preallocate(shared: torch.Tensor, num_prompts: int, num_more: int) -> torch.Tensor:
    _, num_heads, num_tokens, size = shared.shape
    found = shared.new_empty(num_prompts, num_heads, num_tokens + num_more, size)
    found[:, :, :num_tokens] = shared
    return found


def batch_cache(shared: DynamicCache, num_prompts: int, num_more: int) -> DynamicCache:
    """A cache for `num_prompts` prompts that start with the tokens of `shared`; `shared` itself is unchanged."""
    found = copy.copy(shared)
    found.layers = [_batch_layer(layer, num_prompts, num_more) for layer in shared.layers]
    return found


def _batch_layer(layer: DynamicLayer, num_prompts: int, num_more: int) -> DynamicLayer:
    if type(layer) is DynamicLayer:
        return PreallocatedLayer(layer, num_prompts, num_more)
    layer = copy.deepcopy(layer)  # for example a sliding-window layer
    layer.batch_repeat_interleave(num_prompts)
    return layer
