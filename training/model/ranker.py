"""The ranker: an enhancer, a backbone, a history kernel and the score of fresh features.

    views = enhancer(items, users)                 inputs of the backbone: one or two versions of the sequence
    state = backbone(views)                        one state per step
    score = state . candidate + kernel + fresh     score of every item as the next one

Backbones are in `backbones.py`, enhancers in `enhancers/`, GRASP's attention in `attention.py`. The caller adds what
`fresh` says, because it reads features of a day (`fresh_score.py`).

Shape suffixes:  B batch  T sequence length, oldest first  S semantic size  D state width
                 N items, row 0 is padding
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.backbones import new_backbone
from training.model.config import MASK, PADDING, RankerConfig
from training.model.enhancers import ENHANCERS
from training.model.enhancers.grasp import Grasp
from training.model.enhancers.id_embeddings import UserVectors
from training.model.fresh_score import FreshScore
from training.model.history_kernel import HistoryKernel
from training.model.llm_esr_backbones import initialise_legacy


class Ranker(nn.Module):
    """Scores every item as the next one, from a user's sequence and vectors.

    Item indices are 1 to N in the order of the vocabulary; 0 is padding, on the left. If the enhancer reads vectors,
    `attach_items` must be called first.
    """

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        if config.enhancer not in ENHANCERS:
            raise ValueError(f"enhancer {config.enhancer!r} is not one of {', '.join(ENHANCERS)}")
        self.config = config
        self.enhancer = ENHANCERS[config.enhancer](config)
        self.backbone = new_backbone(config)
        self.mask = nn.Parameter(torch.zeros(config.width))
        self.kernel = HistoryKernel(config) if config.kernel_length else None
        self.fresh = FreshScore()
        if config.variant == "legacy":
            initialise_legacy(self, self.enhancer.item)
        self.register_load_state_dict_post_hook(lambda ranker, _: ranker.enhancer.clear_cache())

    @property
    def num_items(self) -> int:
        """Number of scored items: those known in training and attached newer ones."""
        return self.enhancer.num_items

    def attach_items(self, semantic_NS: Tensor, neighbour_NS: Tensor) -> None:
        """Set the frozen item vectors; row i holds item i + 1, rows from `config.num_items` on hold newer items.

        A newer item has no item embedding. It is scored by its semantic vector and, if there are lenders, by their
        embeddings; its kernel score is 0. Raises `ValueError` for a wrong size, too few vectors or non-finite values.
        """
        for name, vectors in (("semantic", semantic_NS), ("neighbour", neighbour_NS)):
            if vectors.ndim != 2 or vectors.shape[1] != self.config.semantic_size:
                raise ValueError(f"{name} item vectors {tuple(vectors.shape)} need {self.config.semantic_size} columns")
            if len(vectors) < self.config.num_items or len(vectors) != len(semantic_NS):
                raise ValueError(f"{len(vectors)} {name} item vectors; the model knows {self.config.num_items} items")
            if not vectors.isfinite().all():
                raise ValueError(f"{name} item vectors hold values that are not finite")
        self.enhancer.attach_items(semantic_NS, neighbour_NS)

    def forward(self, items_BT: Tensor, user_semantic_BS: Tensor, user_neighbour_BS: Tensor) -> Tensor:
        """The state after each step, (B, T, D), for at most `max_length` items and one MASK."""
        mask_BT = items_BT != PADDING
        mask_BTD = (items_BT == MASK)[..., None] * self.mask
        views = self.enhancer.views(items_BT, UserVectors(user_semantic_BS, user_neighbour_BS))
        states_BTD = self.backbone(torch.cat([view + mask_BTD for view in views]), mask_BT.repeat(len(views), 1))
        state_BTD = self.enhancer.combine_states(list(states_BTD.chunk(len(views)))) * mask_BT[..., None]
        if self.config.score == "cosine":
            return F.normalize(state_BTD, dim=-1) / self.config.temperature
        return state_BTD

    def last_state(self, items_BT: Tensor, user_semantic_BS: Tensor, user_neighbour_BS: Tensor) -> Tensor:
        """The state after the latest items, (B, D), from which items are recommended."""
        items_BT = items_BT[:, -self.config.max_length :]
        if self.config.backbone == "bert4rec":
            items_BT = F.pad(items_BT, (0, 1), value=MASK)
        return self(items_BT, user_semantic_BS, user_neighbour_BS)[:, -1]

    def candidate_vectors(self, items_N: Tensor | None = None) -> Tensor:
        """The vectors that states are multiplied with, (N, D), of `items_N` or of all items; row 0 of all is zero."""
        if items_N is None:
            items_N = torch.arange(self.num_items + 1)
        candidate_ND = self.enhancer.candidate_vectors(items_N)
        return F.normalize(candidate_ND, dim=-1) if self.config.score == "cosine" else candidate_ND

    def scores(
        self,
        items_BT: Tensor,
        user_semantic_BS: Tensor,
        user_neighbour_BS: Tensor,
        candidate_ND: Tensor | None = None,
        *,
        with_kernel: bool = True,
    ) -> Tensor:
        """Score of every item as the next one, (B, N), column 0 is padding. `candidate_ND` may pass cached vectors."""
        candidate_ND = self.candidate_vectors() if candidate_ND is None else candidate_ND
        score_BN = self.last_state(items_BT, user_semantic_BS, user_neighbour_BS) @ candidate_ND.T
        if self.kernel is None or not with_kernel:
            return score_BN
        return score_BN + self.kernel(items_BT, self.num_items)

    def history_weights(self, items_BT: Tensor, user_semantic_BS: Tensor, user_neighbour_BS: Tensor) -> Tensor:
        """Attention weight of each history item in the last state, (B, T); 0 for padding.

        Raises `ValueError` for a ranker without holistic attention.
        """
        if not isinstance(self.enhancer, Grasp):
            raise ValueError("this ranker has no holistic attention and so no history weights")
        return self.enhancer.history_weights(items_BT, UserVectors(user_semantic_BS, user_neighbour_BS))

    def train(self, mode: bool = True) -> "Ranker":
        self.enhancer.clear_cache()
        return super().train(mode)
