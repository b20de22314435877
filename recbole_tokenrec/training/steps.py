"""How long the LLM4Rec stage is trained where ``llm_epochs`` is empty: so many steps, within so many epochs."""

LLM_STEPS, LLM_EPOCHS = 2100, (4, 60)  # small data are gone through more often
