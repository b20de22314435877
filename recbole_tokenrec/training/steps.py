"""How long a stage is trained where ``cf_epochs`` or ``llm_epochs`` is empty: so many steps, within so many epochs.

Small data are gone through more often: an epoch of 600 users is three steps.
"""

CF_STEPS, CF_EPOCHS = 900, (30, 90)
CF_VALIDATIONS = 6  # of a collaborative model where ``cf_eval_step`` is empty
LLM_STEPS, LLM_EPOCHS = 2100, (4, 60)


def epochs_of(steps: int, epochs: tuple[int, int], steps_per_epoch: int) -> int:
    """The epochs that ``steps`` take, but no fewer and no more than ``epochs`` allows."""
    least, most = epochs
    return max(least, min(most, -(-steps // steps_per_epoch)))
