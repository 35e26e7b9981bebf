"""The ranker: any backbone over whatever an enhancer makes of items and users, and a history kernel beside them.

    views = enhancer(items, users)         what the backbone reads: one or two versions of the sequence
    state = backbone(views)                one state per step
    score = state . candidate + kernel     every item as the next one

The backbones are in `backbones.py`, what enhances them in `enhancers/`, GRASP's attention in `attention.py`.

Shape suffixes:  B batch  T sequence length, oldest first  S semantic size  D width of a state
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
from training.model.history_kernel import HistoryKernel
from training.model.llm_esr_backbones import initialise


class Ranker(nn.Module):
    """Reads a user's sequence and vectors and scores every item as the next one.

    Item indices are 1 to N in the order of the vocabulary; 0 is padding, on the left. `attach_items` must be called
    before anything else where the enhancer reads vectors.
    """

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        if config.enhancer not in ENHANCERS:
            raise ValueError(f"enhancer {config.enhancer!r} is none of {', '.join(ENHANCERS)}")
        self.config = config
        self.enhancer = ENHANCERS[config.enhancer](config)
        self.backbone = new_backbone(config)
        self.mask = nn.Parameter(torch.zeros(config.width))
        self.kernel = HistoryKernel(config) if config.kernel_length else None
        if config.variant == "legacy":
            initialise(self, self.enhancer.item)
        self.register_load_state_dict_post_hook(lambda ranker, _: ranker.enhancer.clear_cache())

    @property
    def num_items(self) -> int:
        """Items that are scored: those known in training, and newer ones that were attached."""
        return self.enhancer.num_items

    def attach_items(self, semantic_NS: Tensor, neighbour_NS: Tensor) -> None:
        """Give the frozen item vectors, row i for item i + 1; rows after `config.num_items` are items newer than it.

        A newer item has no item embedding yet: it is scored by its meaning, with lenders also by what they learnt. The
        history kernel knows nothing of it. Raises `ValueError` for vectors of
        another size, too few of them, or values that are not finite.
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
        """The state after each step, (B, T, D). Takes at most `max_length` items, and a MASK."""
        mask_BT = items_BT != PADDING
        asked_BTD = (items_BT == MASK)[..., None] * self.mask
        views = self.enhancer.views(items_BT, UserVectors(user_semantic_BS, user_neighbour_BS))
        states_BTD = self.backbone(torch.cat([view + asked_BTD for view in views]), mask_BT.repeat(len(views), 1))
        state_BTD = self.enhancer.combine_states(list(states_BTD.chunk(len(views)))) * mask_BT[..., None]
        if self.config.score == "cosine":
            return F.normalize(state_BTD, dim=-1) / self.config.temperature
        return state_BTD

    def last_state(self, items_BT: Tensor, user_semantic_BS: Tensor, user_neighbour_BS: Tensor) -> Tensor:
        """What recommendations are made from, (B, D): the state after the latest items, padding on the left."""
        items_BT = items_BT[:, -self.config.max_length :]
        if self.config.backbone == "bert4rec":
            items_BT = F.pad(items_BT, (0, 1), value=MASK)
        return self(items_BT, user_semantic_BS, user_neighbour_BS)[:, -1]

    def candidate_vectors(self, items_N: Tensor | None = None) -> Tensor:
        """What a state is multiplied with, (N, D): all items, or those of `items_N`. Row 0 of all is padding, zero."""
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
        """Every item as the next one, (B, N), column 0 is padding. `candidate_ND` saves computing `candidates()`."""
        candidate_ND = self.candidate_vectors() if candidate_ND is None else candidate_ND
        score_BN = self.last_state(items_BT, user_semantic_BS, user_neighbour_BS) @ candidate_ND.T
        if self.kernel is None or not with_kernel:
            return score_BN
        return score_BN + self.kernel(items_BT, self.num_items)

    def history_weights(self, items_BT: Tensor, user_semantic_BS: Tensor, user_neighbour_BS: Tensor) -> Tensor:
        """How much each item of the history counted in the last state, (B, T); padding weighs 0.

        Raises `ValueError` for a ranker without holistic attention.
        """
        if not isinstance(self.enhancer, Grasp):
            raise ValueError("this ranker has no holistic attention, so its history has no weights")
        return self.enhancer.history_weights(items_BT, UserVectors(user_semantic_BS, user_neighbour_BS))

    def train(self, mode: bool = True) -> "Ranker":
        self.enhancer.clear_cache()
        return super().train(mode)
