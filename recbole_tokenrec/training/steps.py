"""How long a stage is trained where ``cf_epochs`` or ``llm_epochs`` is empty, and the learning rate on the way.

So many steps, within so many epochs: small data are gone through more often, since an epoch of 600 users is three
steps.
"""

import math

CF_STEPS, CF_EPOCHS = 900, (30, 90)
CF_VALIDATIONS = 6  # of a collaborative model where ``cf_eval_step`` is empty
LLM_STEPS, LLM_EPOCHS = 2100, (4, 60)


def epochs_of(steps: int, epochs: tuple[int, int], steps_per_epoch: int) -> int:
    """The epochs that ``steps`` take, but no fewer and no more than ``epochs`` allows."""
    least, most = epochs
    return max(least, min(most, -(-steps // steps_per_epoch)))


def learning_rate_at(step: int, total: int, warmup_ratio: float, decay: str) -> float:
    """Learning rate as a share of its peak: linear warm-up, then constant, linear or cosine decay to 1 %."""
    warmup = warmup_ratio * total
    if step < warmup:
        return (step + 1) / (warmup + 1)
    done = min((step - warmup) / max(total - warmup, 1), 1.0)
    if decay == "linear":
        return 1 - 0.99 * done
    if decay == "cosine":
        return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
    return 1.0
