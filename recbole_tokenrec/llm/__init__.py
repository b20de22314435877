"""ID tokens in prompts -> language model -> user vector. transformers is imported only when a backbone is built."""
