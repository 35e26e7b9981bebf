"""The key/value cache of a batch of prompts that begin with the same tokens, with room for what follows them.

transformers' own `DynamicCache` copies all keys and values of a batch for every token that is written: with hundreds
of shared tokens that takes longer than the model's own work.
"""

import copy

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """One layer's keys and values: those of the shared tokens for every prompt, new ones written in their place."""

    def __init__(self, shared: DynamicLayer, num_prompts: int, num_more: int) -> None:
        super().__init__()
        self.dtype, self.device, self.is_initialized = shared.dtype, shared.device, True
        self._all_keys = _with_room(shared.keys, num_prompts, num_more)
        self._all_values = _with_room(shared.values, num_prompts, num_more)
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


def _with_room(shared: torch.Tensor, num_prompts: int, num_more: int) -> torch.Tensor:
    _, num_heads, num_tokens, size = shared.shape
    found = shared.new_empty(num_prompts, num_heads, num_tokens + num_more, size)
    found[:, :, :num_tokens] = shared
    return found


def for_batch(shared: DynamicCache, num_prompts: int, num_more: int) -> DynamicCache:
    """A cache of so many prompts that begin with the tokens of `shared`, which stays as it is, and so many more."""
    found = copy.copy(shared)
    found.layers = [_of_batch(layer, num_prompts, num_more) for layer in shared.layers]
    return found


def _of_batch(layer: DynamicLayer, num_prompts: int, num_more: int) -> DynamicLayer:
    if type(layer) is DynamicLayer:
        return RoomyLayer(layer, num_prompts, num_more)
    layer = copy.deepcopy(layer)  # such as one that looks back over a window
    layer.batch_repeat_interleave(num_prompts)
    return layer
