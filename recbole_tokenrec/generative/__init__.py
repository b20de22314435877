"""What the text-generating baselines (P5, CID, POD, CoLLM) share: item IDs, prompts, tries, beams, their trainer."""
