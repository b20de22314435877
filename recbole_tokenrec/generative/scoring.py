"""Top-K lists out of a language model: beam search over item IDs, and its result as RecBole's score matrix."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import torch

from recbole_tokenrec.generative.sharing import beams_share_prompts
from recbole_tokenrec.generative.trie import Trie, TrieProcessor


class Beams(NamedTuple):
    """``items`` (B, beams), 0 where a beam came to nothing; ``scores`` (B, beams) log-probabilities or -inf."""

    items: torch.Tensor
    scores: torch.Tensor


def beams_needed(config) -> int:
    """``num_beams``, or if empty max(topk) and one more.

    What a user took in training costs no beam, since those branches are closed. At test RecBole also masks the
    validation item, which the model does not know: hence the one more.
    """
    return config["num_beams"] or max(config["topk"]) + 1


@torch.no_grad()
def beam_search(
    backbone,
    hidden,
    attention_mask,
    trie: Trie,
    num_beams: int,
    closed=None,
    constrained: bool = True,
    share_prompts: bool = True,
) -> Beams:
    """transformers' beam search for B users; scores are sums of log-probabilities, not divided by the length.

    Args:
        backbone: encoder-decoder with a language-model head.
        hidden: (B, T, width), the encoder's output.
        attention_mask: (B, T).
        closed: (B, n_nodes + 1), nodes that a user may not enter, see :meth:`Trie.closed`.
        constrained: only IDs of items are generated; if not, what is no ID comes to nothing.
        share_prompts: see :mod:`.sharing`; if not, each beam has its own copy of the prompt, as transformers does it.
    """
    from transformers import LogitsProcessorList
    from transformers.modeling_outputs import BaseModelOutput

    start = backbone.config.decoder_start_token_id
    known = [backbone.config.pad_token_id if start is None else start]
    processors = LogitsProcessorList()
    if constrained:
        known += trie.prefix  # words all IDs begin with need no step of their own
        processors.append(TrieProcessor(trie, num_beams, closed))
    with beams_share_prompts(backbone, num_beams) if share_prompts else contextlib.nullcontext():
        output = backbone.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden),
            attention_mask=attention_mask,
            decoder_input_ids=torch.tensor(known, device=hidden.device).expand(len(hidden), -1),
            logits_processor=processors,
            num_beams=num_beams,
            num_return_sequences=num_beams,
            max_length=trie.depth + 1,
            min_length=0,
            length_penalty=0.0,
            early_stopping=False,
            do_sample=False,
            return_dict_in_generate=True,
            output_scores=True,  # without it sequences_scores stays away
        )
    sequences, scores = output.sequences, output.sequences_scores  # (B * beams, t), (B * beams,)
    items = trie.item[trie.walk(sequences[:, 1:], stay=True)]  # padding follows an ID
    lost = (items == 0) | (scores < -1e8)
    shape = len(hidden), num_beams
    return Beams(items.masked_fill(lost, 0).view(shape), scores.masked_fill(lost, -torch.inf).view(shape))


def score_matrix(beams: Beams, n_items: int) -> torch.Tensor:
    """(B, n_items): the beams' log-probabilities, -inf for all other items and for padding."""
    scores = torch.full((len(beams.items), n_items), -torch.inf, device=beams.items.device)
    scores.scatter_reduce_(1, beams.items, beams.scores, "amax")
    scores[:, 0] = -torch.inf
    return scores
